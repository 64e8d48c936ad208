"""Noise schedules, timesteps and sampler steps against diffusers' schedulers.

The macros are rendered outside dbt and read small temporary tables. The oracle
is what step() of DDPMScheduler and DDIMScheduler makes of numbers in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, execute_values

from conftest import Dbt
from image_reference import SCHEDULERS, gaussian_noise, scheduler_step
from macros import create_functions, load_macros

SCHEMA = "test_schedulers"
Row = dict[str, Any]
Scheduler = DDPMScheduler | DDIMScheduler

BETAS: dict[str, Row] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
SPACINGS = ["leading", "trailing", "linspace"]
# 48 and 96 have timesteps at a half, in trailing
STEPS = [1, 2, 3, 7, 10, 48, 50, 96, 333, 500, 999, 1000]
ETAS = [0, 0.3, 1]


@pytest.fixture(scope="module")
def macros() -> Any:
    """The schedulers' macros, called outside dbt."""
    return load_macros(
        SCHEMA,
        "diffusion/schedule.sql",
        "diffusion/denoise.sql",
        "network/frontier.sql",
    )


@pytest.fixture(scope="module")
def database(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    """The connection, with the functions that the macros call and their tables."""
    cursor = connection.cursor()
    create_functions(dbt, SCHEMA, tmp_path_factory.mktemp("project"))
    cursor.execute("""
        create temporary table scheduler (parameter text, value jsonb);
        create temporary table noise_schedule (
            timestep integer primary key, beta float8, alpha_cumprod float8
        );
        create temporary table requests (
            image_id integer, scheduler text, num_inference_steps integer,
            eta float8, seed bigint
        );
        create temporary table frontier (
            image_id integer, step integer, y integer, x integer,
            activation vector, sample vector
        );
        create temporary table model_output (
            image_id integer, y integer, x integer, activation vector
        );
    """)
    yield connection
    cursor.execute(f"drop schema {SCHEMA} cascade")


# --- Both sides ---------------------------------------------------------------


def make_scheduler(kind: str, config: Row) -> Scheduler:
    """Diffusers' own; its betas are float32, the rest is in float64.

    What float32 loses is seen in test_float32_of_diffusers.
    """
    scheduler = SCHEDULERS[kind](**config)
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    if kind == "ddim" and not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def fill(connection: Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    cursor = connection.cursor()
    cursor.execute(f"truncate {table}")
    execute_values(cursor, f"insert into {table} values %s", rows)


def write_scheduler(connection: Connection, macros: Any, scheduler: Scheduler) -> None:
    """Its configuration, as the loader stores it, and its noise schedule."""
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    fill(connection, "scheduler", [(k, Json(v)) for k, v in config.items()])
    cursor = connection.cursor()
    cursor.execute(
        "truncate noise_schedule; insert into noise_schedule "
        + str(macros.diffusion_noise_schedule("scheduler"))
    )


def write_requests(connection: Connection, rows: list[Row]) -> None:
    fill(
        connection,
        "requests",
        [
            (n, row["scheduler"], row["steps"], row.get("eta", 0), row.get("seed", 0))
            for n, row in enumerate(rows)
        ],
    )


def read_timesteps(connection: Connection, macros: Any) -> dict[int, list[Row]]:
    """The rows of ddpm_timesteps by image."""
    cursor = connection.cursor()
    cursor.execute(
        "drop table if exists timesteps; create temporary table timesteps as "
        + str(macros.diffusion_timesteps("requests", "noise_schedule", "scheduler"))
    )
    cursor.execute("select * from timesteps order by image_id, step")
    names = [column.name for column in cursor.description]
    found: dict[int, list[Row]] = {}
    for values in cursor:
        row = dict(zip(names, values, strict=True))
        found.setdefault(row["image_id"], []).append(row)
    return found


# --- Noise schedule -----------------------------------------------------------


@pytest.mark.parametrize("train_steps", [1000, 1, 2, 77, 4000])
@pytest.mark.parametrize("betas", BETAS)
def test_noise_schedule(
    database: Connection, macros: Any, betas: str, train_steps: int
) -> None:
    scheduler = make_scheduler(
        "ddpm", {**BETAS[betas], "num_train_timesteps": train_steps}
    )
    write_scheduler(database, macros, scheduler)
    cursor = database.cursor()
    cursor.execute("select * from noise_schedule order by timestep")
    timesteps, found_betas, alphas = zip(*cursor, strict=True)
    assert timesteps == tuple(range(train_steps))
    # torch computes betas in float32, which keeps 6e-8 of a number
    assert found_betas == pytest.approx(scheduler.betas.tolist(), rel=5e-7)
    assert alphas == pytest.approx(scheduler.alphas_cumprod.tolist(), rel=1e-4)
    own = np.cumprod(1 - np.array(found_betas))
    assert alphas == pytest.approx(own.tolist(), rel=1e-9)


# --- Timesteps ----------------------------------------------------------------


def check_timesteps(
    database: Connection, macros: Any, config: Row, rows: list[Row]
) -> None:
    """All columns, against set_timesteps() and step() of diffusers.

    step() is linear in its input where nothing is clipped, so what it makes of
    the unit vectors says all. With v_prediction no number is large there.
    """
    config = {**config, "prediction_type": "v_prediction", "clip_sample": False}
    write_scheduler(database, macros, make_scheduler(rows[0]["scheduler"], config))
    write_requests(database, rows)
    found = read_timesteps(database, macros)
    # rows of a unit of the sample, of the output, of the noise
    sample, output, noise = torch.eye(3, dtype=torch.float64)[:, None]
    for n, row in enumerate(rows):
        scheduler = make_scheduler(row["scheduler"], config)
        scheduler.set_timesteps(row["steps"])
        timesteps = scheduler.timesteps.tolist()
        assert [each["timestep"] for each in found[n]] == timesteps, (config, row)
        assert [each["step"] for each in found[n]] == list(range(len(timesteps)))
        ours, expected = [], []
        for each, timestep in zip(found[n], timesteps, strict=True):
            picture, signal = signal_and_noise(each["alpha_cumprod"])
            # the picture and the noise predicted, of each unit
            original = np.array([picture, -signal, 0])
            epsilon = np.array([signal, picture, 0])
            ours.append(
                each["original_weight"] * original
                + each["epsilon_weight"] * epsilon
                + each["sample_weight"] * np.array([1, 0, 0])
                + each["sigma"] * np.array([0, 0, 1])
            )
            following, _ = scheduler_step(
                scheduler, output, timestep, sample, row.get("eta", 0), noise
            )
            expected.append(following[0].numpy())
            if row["scheduler"] == "ddpm":
                previous = int(scheduler.previous_timestep(timestep))
            else:
                previous = max(timestep - scheduler.config.num_train_timesteps
                               // row["steps"], -1)  # fmt: skip
            assert each["previous_timestep"] == previous, (config, row, timestep)
        difference = abs(np.array(ours) - np.array(expected))
        worst = np.unravel_index(difference.argmax(), difference.shape)
        # betas differ by 1e-7 of themselves
        assert difference[worst] < 2e-6, (
            f"{config}, {row}, step {worst[0]}: {ours[worst[0]]} of sample, output "
            f"and noise, diffusers {expected[worst[0]]}"
        )
        assert np.isfinite(ours).all()
        # of the noise even the least, sqrt(1e-20)
        sigmas = np.array(expected)[:, 2]
        assert np.array(ours)[:, 2] == pytest.approx(sigmas, rel=1e-4, abs=1e-13), row


def signal_and_noise(alpha_cumprod: float) -> tuple[float, float]:
    return math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("betas", BETAS)
def test_timesteps(database: Connection, macros: Any, betas: str, spacing: str) -> None:
    """Of every number of steps, by both schedulers."""
    config = {**BETAS[betas], "timestep_spacing": spacing}
    check_timesteps(
        database,
        macros,
        config,
        [{"scheduler": "ddpm", "steps": steps} for steps in STEPS],
    )
    check_timesteps(
        database,
        macros,
        config,
        [
            {"scheduler": "ddim", "steps": steps, "eta": ETAS[n % len(ETAS)]}
            for n, steps in enumerate(STEPS)
        ]
        + [{"scheduler": "ddim", "steps": 50, "eta": eta} for eta in ETAS],
    )


OPTIONS: dict[str, tuple[str, Row]] = {
    "fixed_large": ("ddpm", {"variance_type": "fixed_large"}),
    "fixed_large, offset": (
        "ddpm",
        {"variance_type": "fixed_large", "steps_offset": 1},
    ),
    # the last step is not that of timestep 0: a variance of 1e-20
    "fixed_small, offset": ("ddpm", {"steps_offset": 3}),
    "offset": ("ddim", {"steps_offset": 1}),
    "the first alpha at the end": ("ddim", {"set_alpha_to_one": False}),
    "as Stable Diffusion": ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
    "trained for 77": ("ddim", {"num_train_timesteps": 77}),
    "trained for 777": ("ddpm", {"num_train_timesteps": 777}),
}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(database: Connection, macros: Any, name: str, spacing: str) -> None:
    kind, config = OPTIONS[name]
    config = {**config, "timestep_spacing": spacing}
    most = config.get("num_train_timesteps", 1000)
    check_timesteps(
        database,
        macros,
        config,
        [
            {"scheduler": kind, "steps": steps, "eta": eta}
            for steps in (1, 7, 10, 50, most // 2, most)
            for eta in (ETAS if kind == "ddim" else [0])
            # else the first timestep is above those that it was trained with
            if spacing != "leading" or (steps - 1) * (most // steps) + 3 < most
        ],
    )


def test_the_other_class_of_scheduler(database: Connection, macros: Any) -> None:
    """An image may ask for one that the checkpoint was not saved with.

    As diffusers' from_config() would read it.
    """
    for kind, own in (("ddim", DDPMScheduler()), ("ddpm", DDIMScheduler())):
        write_scheduler(database, macros, own)
        write_requests(database, [{"scheduler": kind, "steps": 20, "eta": 0}])
        [found] = read_timesteps(database, macros).values()
        other = SCHEDULERS[kind].from_config(own.config)
        write_scheduler(database, macros, other)
        [expected] = read_timesteps(database, macros).values()
        assert found == expected


@pytest.mark.parametrize("spacing", SPACINGS)
def test_any_number_of_steps(database: Connection, macros: Any, spacing: str) -> None:
    """Their timesteps only: all from 1 to 1,000, where diffusers has as many."""
    steps, expected = [], []
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        # for some it has one more in trailing, -1, which it was not trained with
        if len(scheduler.timesteps) == n:
            steps.append(n)
            expected.append(scheduler.timesteps.tolist())
        else:
            assert (spacing, int(scheduler.timesteps[-1])) == ("trailing", -1)
    assert len(steps) > 900
    write_scheduler(database, macros, scheduler)
    write_requests(database, [{"scheduler": "ddim", "steps": n} for n in steps])
    cursor = database.cursor()
    cursor.execute(
        "select array_agg(timestep order by step) from ("
        + str(macros.diffusion_timesteps("requests", "noise_schedule", "scheduler"))
        + ") as timesteps group by image_id order by image_id"
    )
    for n, [found], wanted in zip(steps, cursor, expected, strict=True):
        assert found == wanted, n


def test_too_high_a_timestep(database: Connection, macros: Any) -> None:
    """An offset that leads past what the network was trained with is an error."""
    write_scheduler(database, macros, DDIMScheduler(steps_offset=1))
    write_requests(database, [{"scheduler": "ddim", "steps": 1000}])
    with pytest.raises(Exception, match=r"starts at timestep 1000.*0 to 999"):
        read_timesteps(database, macros)


def test_float32_of_diffusers(database: Connection, macros: Any) -> None:
    """Its schedules as they are: all products in float32."""
    for betas in BETAS.values():
        for kind in SCHEDULERS:
            scheduler = SCHEDULERS[kind](**betas)
            scheduler.set_timesteps(50)
            write_scheduler(database, macros, scheduler)
            write_requests(database, [{"scheduler": kind, "steps": 50}])
            [found] = read_timesteps(database, macros).values()
            alphas = scheduler.alphas_cumprod[scheduler.timesteps]
            assert [row["alpha_cumprod"] for row in found] == pytest.approx(
                alphas.tolist(), rel=1e-4, abs=1e-6
            )


# --- One step -----------------------------------------------------------------

CHANNELS = 3


def denoise(
    database: Connection,
    macros: Any,
    samples: torch.Tensor,
    outputs: torch.Tensor,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next samples and the pictures predicted, [images, places, channels].

    Image n is that of request n; its places are in a row.
    """
    frontier = [
        (n, step, y, 0, [9] * CHANNELS, place)
        for n, image in enumerate(samples.tolist())
        for y, place in enumerate(image)
    ]
    fill(database, "frontier", frontier)
    fill(
        database,
        "model_output",
        [
            (n, y, 0, place)
            for n, image in enumerate(outputs.tolist())
            for y, place in enumerate(image)
        ],
    )
    tables = ("model_output", "frontier", "requests", "timesteps", "scheduler")
    cursor = database.cursor()
    cursor.execute(
        "select image_id, step, y, x, activation::real[], pred_original_sample::real[] "
        f"from ({macros.diffusion_denoise(*tables)}) as denoised "
        "order by image_id, y"
    )
    rows = cursor.fetchall()
    assert [row[:4] for row in rows] == [
        (n, s + 1, y, x) for n, s, y, x, *_ in frontier
    ]
    return (
        torch.tensor([row[4] for row in rows]).reshape(samples.shape),
        torch.tensor([row[5] for row in rows]).reshape(samples.shape),
    )


@pytest.mark.parametrize("clip", [None, 1.0, 0.25, 2.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_step(
    database: Connection,
    macros: Any,
    betas: str,
    prediction: str,
    clip: float | None,
    data: st.DataObject,
) -> None:
    """ddpm_denoise on arbitrary numbers is step() of diffusers."""
    steps = data.draw(st.sampled_from([1, 2, 4, 10]), "steps")
    step = data.draw(st.integers(0, steps - 1), "step")
    spacing = data.draw(st.sampled_from(SPACINGS), "spacing")
    config = {
        **BETAS[betas],
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "clip_sample": clip is not None,
        "clip_sample_range": clip or 1.0,
    }
    rows: list[Row] = [
        {"scheduler": "ddpm", "steps": steps, "seed": 5},
        {"scheduler": "ddim", "steps": steps, "seed": -6},
        {"scheduler": "ddim", "steps": steps, "seed": 7, "eta": 0.5},
        {"scheduler": "ddim", "steps": steps, "seed": 2**62, "eta": 1.0},
    ]
    numbers = st.floats(-4, 4, width=32)
    count = len(rows) * 2 * CHANNELS
    samples, outputs = (
        torch.tensor(
            data.draw(st.lists(numbers, min_size=count, max_size=count), what)
        ).reshape(len(rows), 2, CHANNELS)
        for what in ("samples", "outputs")
    )
    write_scheduler(database, macros, make_scheduler("ddim", config))
    write_requests(database, rows)
    read_timesteps(database, macros)
    found, found_pictures = denoise(database, macros, samples, outputs, step)
    for n, row in enumerate(rows):
        scheduler = make_scheduler(row["scheduler"], config)
        scheduler.set_timesteps(steps)
        noise = torch.tensor(
            [gaussian_noise(row["seed"], step + 1, y, 0, CHANNELS) for y in range(2)],
            dtype=torch.float64,
        )
        expected, expected_picture = scheduler_step(
            scheduler,
            outputs[n].double(),
            int(scheduler.timesteps[step]),
            samples[n].double(),
            row.get("eta", 0),
            noise,
        )
        for ours, theirs in (
            (found[n], expected), (found_pictures[n], expected_picture),
        ):  # fmt: skip
            # a picture of all but pure noise is thousands of times the sample
            tolerance = 2e-6 * max(1, float(theirs.abs().max()))
            assert torch.isfinite(ours).all()
            assert float((ours - theirs).abs().max()) <= tolerance, (row, ours, theirs)
