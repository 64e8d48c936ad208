"""Images: bad input gets a clear error, and nothing that was drawn is lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg2
import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from conftest import Dbt
from dbt_nn import database
from dbt_nn import generate as generate_network
from dbt_nn.command_line import ExpectedError
from image_reference import (
    Reference,
    check_close,
    check_layers,
    random_unet,
    save_pipeline,
)
from runs import UNET_TWIN, Ddpm, Row, copy_bare_project, load_checkpoint

SCHEMA = "test_image_input"
# A network, and its checkpoint.
NETWORK = "small_unet"
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 12),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
IMAGES: list[Row] = [
    {"image_id": 1, "scheduler": "ddpm", "num_inference_steps": 3, "seed": 1},
    {"image_id": 2, "scheduler": "ddim", "num_inference_steps": 2, "seed": 2},
    {"image_id": 3, "scheduler": "ddim", "num_inference_steps": 2, "seed": 3},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = random_unet(seed=50, **SMALL)
    return save_pipeline(tmp_path_factory.mktemp("small"), unet, DDPMScheduler())


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def ddpm(
    dbt: Dbt,
    connection: Connection,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ddpm]:
    load_checkpoint(folder, NETWORK)
    project = copy_bare_project(tmp_path_factory.mktemp("project"))
    generate_network.write(
        project / "models" / NETWORK, generate_network.generate(folder, NETWORK)
    )
    runs = Ddpm(dbt, connection, SCHEMA, project / "target", NETWORK, project)
    yield runs
    runs.drop()
    runs.execute(f"drop schema {NETWORK} cascade")


@pytest.fixture(scope="module")
def drawn(ddpm: Ddpm) -> list[Row]:
    """An earlier run, which no bad input may touch."""
    ddpm.draw(IMAGES)
    return written(ddpm)


def written(ddpm: Ddpm) -> list[Row]:
    """What was drawn, and the transactions that wrote it."""
    return ddpm.query(
        "select image_id, step, y, x, xmin::text, activation::text as activation "
        f"from {SCHEMA}.{NETWORK}_samples order by 1, 2, 3, 4"
    )


def of(image_id: int, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["image_id"] == image_id]


def values(image_id: int, rows: list[Row]) -> list[tuple[Any, ...]]:
    """An image's rows without its name and without who wrote them."""
    names = ("step", "y", "x", "activation")
    return [tuple(row[name] for name in names) for row in of(image_id, rows)]


# --- Bad rows -----------------------------------------------------------------

# A relation of requests that is bad as a whole, and what the run stops with.
BAD_RELATIONS: list[tuple[str, list[str]]] = [
    ("null::integer as image_id", ["image_id is NULL"]),
    ("'a' as image_id", ["image_id a", "whole number"]),
    ("1.5 as image_id", ["image_id 1.5", "whole number"]),
    ("8 as image_id union all select 8", ["image_id 8", "2 times"]),
    ("8 as picture", ["no column image_id"]),
    ("8 as image_id, 5 as num_inferense_steps", ["mean num_inference_steps?"]),
    ('8 as image_id, 5 as "Scheduler"', ["mean scheduler?", "another name"]),
]
# A row of requests, and what its error has to say.
BAD_ROWS: list[tuple[str, list[str]]] = [
    *(
        (f"7 as image_id, {value} as {option}", [option])
        for option, bad in {
            "num_inference_steps": [
                "0",
                "-1",
                "1001",
                "2.5",
                "'abc'",
                "''",
                "99999999999",
            ],
            "eta": ["-0.1", "1.5", "'NaN'::float8", "'inf'::float8", "'much'"],
            "scheduler": ["'pndm'", "'DDPM'", "''", "1"],
            "seed": ["'x'", "1.5", "1e30", "''"],
        }.items()
        for value in bad
    ),
    ("7 as image_id, 'ddpm' as scheduler, 0.5 as eta", ["eta", "ddim"]),
    # the checkpoint's own scheduler is DDPM
    ("7 as image_id, 0 as eta", ["eta", "ddim"]),
]
LARGEST_SEED = 2**63 - 1  # fmt: skip


@pytest.fixture(scope="module")
def compiled(ddpm: Ddpm, drawn: list[Row]) -> str:
    """The SQL that dbt ran for the first model."""
    folder = ddpm.target / "compiled" / "dbt_nn" / "models" / NETWORK / "input"
    return (folder / f"{NETWORK}_requests.sql").read_text(encoding="utf-8")


def with_options(compiled: str, options: Row) -> str:
    """The same SQL with other options of all images."""
    none = "'{}'::jsonb as named"
    assert compiled.count(none) == 1
    return compiled.replace(none, f"'{json.dumps(options)}'::jsonb as named")


def read_requests(compiled: str, rows: str) -> list[Row]:
    """What the model makes of a relation of requests."""
    table = f"{SCHEMA}.test_requests"
    with contextlib.closing(database.connect()) as opened:
        cursor = opened.cursor(cursor_factory=RealDictCursor)
        cursor.execute(f"drop table {table}; create table {table} as select {rows}")
        cursor.execute(compiled)
        return cursor.fetchall()


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS, ids=[bad for bad, _ in BAD_ROWS])
def test_bad_row(compiled: str, bad: str, message: list[str]) -> None:
    """It says what is wrong, and is never drawn."""
    [found] = read_requests(compiled, bad)
    for part in message:
        assert part in found["error"]
    assert found["batch"] is found["num_inference_steps"] is None


@pytest.mark.parametrize(
    ("bad", "message"), BAD_RELATIONS, ids=[bad for bad, _ in BAD_RELATIONS]
)
def test_bad_relation(compiled: str, bad: str, message: list[str]) -> None:
    """What the statement raises is what dbt says and fails with, as below."""
    with pytest.raises(psycopg2.Error) as caught:
        read_requests(compiled, bad)
    for part in message:
        assert part in str(caught.value.diag.message_primary)


# The var for options, and what the error has to say.
BAD_OPTIONS: list[tuple[Row, list[str]]] = [
    ({name: value}, [name, json.dumps(value), message])
    for name, value, message in (
        ("num_inference_steps", 0, "1 or more"),
        ("num_inference_steps", -1, "1 or more"),
        ("num_inference_steps", 1001, "at most 1000"),
        ("num_inference_steps", "abc", "whole number"),
        ("num_inference_steps", [3], "whole number"),
        ("batch_size", 0, "1 or more"),
        ("batch_size", "two", "whole number"),
        ("seed", "x", "whole number"),
        ("scheduler", "dpm", "ddpm or ddim"),
        ("eta", -0.1, "from 0"),
        ("eta", 1.5, "to 1"),
    )
]
BAD_OPTIONS.append(({"eta": 0.5}, ["eta", "ddim", "not of ddpm"]))


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=repr)
def test_bad_option(compiled: str, options: Row, message: list[str]) -> None:
    """In the same statement, with other options; in `error`, if the row decides."""
    try:
        [found] = read_requests(with_options(compiled, options), "1 as image_id")
        problem = found["error"]
    except psycopg2.Error as error:
        problem = error.diag.message_primary
    for part in message:
        assert part in problem


def test_ends_of_integers(compiled: str) -> None:
    """Image n has the run's seed + n - 1, where that is a bigint."""

    def read(seed: int, rows: str) -> list[Row]:
        found = read_requests(with_options(compiled, {"seed": seed}), rows)
        return sorted(found, key=lambda row: row["image_id"])

    rows = "2147483647 as image_id union all select -2147483648"
    found = read(LARGEST_SEED - 1, rows)
    assert [row["seed"] for row in found] == [LARGEST_SEED - 1, LARGEST_SEED]
    assert [row["error"] for row in found] == [None, None]
    found = read(LARGEST_SEED, rows)
    assert [row["seed"] for row in found] == [LARGEST_SEED, None]
    for part in ("seed must be at most", str(LARGEST_SEED - 1), "image 2"):
        assert part in found[1]["error"]
    assert [row["seed"] for row in read(-(2**63), rows)] == [-(2**63), 1 - 2**63]


def test_types_and_other_columns(compiled: str) -> None:
    [found] = read_requests(
        compiled,
        "7.0 as image_id, 'ddim'::char(9) as scheduler, 5.00 as num_inference_steps, "
        "'0.5' as eta, 'x' as schedule_id, 1 as beta, 2 as seeds, 3 as requests",
    )
    assert found["error"] is None
    values = {
        "image_id": 7, "scheduler": "ddim", "num_inference_steps": 5, "eta": 0.5,
        "seed": 0,
    }  # fmt: skip
    assert {name: found[name] for name in values} == values


# --- Runs after runs ----------------------------------------------------------


def test_again(ddpm: Ddpm, reference: Reference, drawn: list[Row]) -> None:
    """Finished images stay; the layers are those of each image's last step."""
    ddpm.write_requests(IMAGES)
    ddpm.run()
    assert written(ddpm) == drawn
    samples, timesteps = [], []
    for row in IMAGES:
        last = row["num_inference_steps"] - 1
        samples.append(ddpm.samples(row["image_id"], last))
        timesteps.append(int(reference.scheduler(row).timesteps[last]))
    check_layers(NETWORK, ddpm.layers(), reference.layers(samples, timesteps))


def test_other_requests(ddpm: Ddpm, reference: Reference, drawn: list[Row]) -> None:
    """Only what is asked for otherwise, or anew, is drawn; the rest is forgotten."""
    requests = [
        IMAGES[0],
        {**IMAGES[1], "seed": 99},
        {**IMAGES[1], "image_id": 5},
        {**IMAGES[2], "image_id": 6, "num_inference_steps": 4, "eta": 1.0},
    ]
    ddpm.draw(requests)
    found = written(ddpm)
    assert {row["image_id"] for row in found} == {1, 2, 5, 6}
    assert of(1, found) == of(1, drawn)
    assert values(5, found) == values(2, drawn)
    other = zip(values(2, found), values(2, drawn), strict=True)
    # a clipped picture is -1 and 1 in many places, whatever the seed
    equal = [one[0] for one, two in other if one == two]
    assert 0 not in equal
    assert len(equal) < 32
    for row in requests:
        for step, expected in enumerate(reference.draw(row)):
            check_close(ddpm.samples(row["image_id"], step), expected, f"{row}, {step}")


def test_other_checkpoint(
    ddpm: Ddpm, drawn: list[Row], folder: Path, tmp_path: Path
) -> None:
    """Of the same name: the images are drawn again."""
    other = save_pipeline(tmp_path, random_unet(seed=53, **SMALL), DDPMScheduler())
    try:
        load_checkpoint(other, NETWORK)
        ddpm.draw(IMAGES[:2])
    finally:
        load_checkpoint(folder, NETWORK)
    found = written(ddpm)
    reference = Reference(other)
    for row in IMAGES[:2]:
        image_id, last = row["image_id"], row["num_inference_steps"]
        assert values(image_id, found) != values(image_id, drawn)
        expected = reference.draw(row)[-1]
        check_close(ddpm.samples(image_id, last), expected, f"{row}")


# --- A connection that is lost halfway ----------------------------------------

LONG: Row = {"scheduler": "ddim", "num_inference_steps": 16, "seed": 8, "eta": 0.5}


def test_interrupted_run(ddpm: Ddpm, drawn: list[Row], tmp_path: Path) -> None:
    """The next run goes on where it was, and the image is as if nothing was."""
    ddpm.write_requests([{**LONG, "image_id": 1}])
    log = tmp_path / "log"
    run = ddpm.start(log)
    try:
        wait_for_steps(ddpm, 3, run, log)
        ddpm.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'dbt'"
        )
        assert run.wait(timeout=120) != 0
    finally:
        run.kill()
        run.wait()
    output = log.read_text(encoding="utf-8")
    assert "connection" in output, output[-3000:]
    before = written(ddpm)
    steps = max(row["step"] for row in before)
    assert 3 <= steps < LONG["num_inference_steps"]
    # each step is there with all its places, or not at all
    assert len(before) == (steps + 1) * 64
    # beside one that begins, undisturbed
    done = ddpm.draw([{**LONG, "image_id": 1}, {**LONG, "image_id": 2}])
    found = written(ddpm)
    assert of(1, found)[: len(before)] == before
    assert values(1, found) == values(2, found)
    assert len(of(1, found)) == (LONG["num_inference_steps"] + 1) * 64
    assert "step 16 of 16" in done.stdout
    # none is done twice: a transaction writes a step
    writers = {row["xmin"] for row in of(1, found)}
    assert len(writers) == LONG["num_inference_steps"] + 1


def wait_for_steps(ddpm: Ddpm, steps: int, run: Popen[bytes], log: Path) -> None:
    """Until so many are made of image 1: each is committed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert run.poll() is None, log.read_text()
        with contextlib.suppress(psycopg2.errors.UndefinedTable):
            [found] = ddpm.query(
                f"select max(step) as step from {SCHEMA}.{NETWORK}_samples as samples "
                f"inner join {SCHEMA}.{NETWORK}_requests as requests using (request) "
                "where requests.num_inference_steps = %s",
                [LONG["num_inference_steps"]],
            )
            if (found["step"] or 0) >= steps:
                return
        time.sleep(0.02)
    pytest.fail("no steps came")


# --- dbt fails, and keeps what was there --------------------------------------


@pytest.fixture(scope="module")
def other_checkpoints(
    ddpm: Ddpm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One with more layers, and one whose offset leaves no room for 1,000 steps."""
    deep = random_unet(seed=51, **{**SMALL, "layers_per_block": 2})
    offset = DDIMScheduler(steps_offset=1)
    networks = {
        "test_deep_unet": (deep, DDPMScheduler()),
        "test_offset_unet": (random_unet(seed=52, **SMALL), offset),
    }
    for name, (unet, scheduler) in networks.items():
        folder = save_pipeline(tmp_path_factory.mktemp(name), unet, scheduler)
        load_checkpoint(folder, name)
    yield
    for name in networks:
        ddpm.execute(f"drop schema {name} cascade")


BAD_RUNS: dict[str, tuple[Row, dict[str, Any], list[str]]] = {
    "an option": (
        IMAGES[0],
        {"small_unet_requests": None, "small_unet_options": {"eta": 0.5}},
        ["eta", "ddim"],
    ),
    "no checkpoint": (
        IMAGES[0],
        {"small_unet_checkpoint": "nowhere"},
        ["nowhere", "not loaded", "load_checkpoint.py"],
    ),
    "other layers": (
        IMAGES[0],
        {"small_unet_checkpoint": "test_deep_unet"},
        ["test_deep_unet", "also has down_blocks_0_resnets_1", "generate_network.py"],
    ),
    "offset": (
        {"image_id": 1, "num_inference_steps": 1000},
        {"small_unet_checkpoint": "test_offset_unet"},
        ["image_id 1", "num_inference_steps = 1000", "steps_offset", "999"],
    ),
    "no such model": (IMAGES[0], {"small_unet_requests": "no_such"}, ["no_such"]),
    "unknown option": (
        IMAGES[0],
        {"small_unet_options": {"steps": 5}},
        ['"steps"', "num_inference_steps", "batch_size"],
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_run(
    ddpm: Ddpm, drawn: list[Row], other_checkpoints: None, case: str
) -> None:
    row, variables, message = BAD_RUNS[case]
    before = written(ddpm)
    assert before
    ddpm.write_requests([row])
    done = ddpm.run(check=False, **variables)
    assert done.returncode != 0, done.stdout[-3000:]
    for part in message:
        assert part in done.stdout, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    assert written(ddpm) == before


def test_a_bad_row_beside_good_ones(ddpm: Ddpm, drawn: list[Row]) -> None:
    """It gets an error, the others are drawn, one batch after the other."""
    rows = [*IMAGES, {"image_id": 77, "num_inference_steps": 0}]
    ddpm.write_requests(rows)
    done = ddpm.run("--full-refresh", batch_memory="1kB")
    assert "rows with an error: 1, for example image_id 77: num_inf" in done.stdout
    assert "images that wait" in done.stdout
    again = written(ddpm)
    for image in IMAGES:
        image_id = image["image_id"]
        assert values(image_id, again) == values(image_id, drawn)
    assert not of(77, again)
    batches = ddpm.query(
        f"select batch, error from {SCHEMA}.{NETWORK}_requests order by image_id"
    )
    assert sorted(row["batch"] for row in batches if not row["error"]) == [
        n + 1 for n in range(len(IMAGES))
    ]


def test_options_of_a_batch(ddpm: Ddpm, drawn: list[Row]) -> None:
    """Without a relation: batch_size images, with one seed after the other."""
    options = {"scheduler": "ddim", "num_inference_steps": 2, "seed": 2}
    ddpm.run(
        "--select",
        f"{NETWORK}_requests",
        small_unet_requests=None,
        small_unet_options={**options, "batch_size": 3, "eta": None},
    )
    found = ddpm.query(
        "select image_id, scheduler, num_inference_steps, eta, seed "
        f"from {SCHEMA}.{NETWORK}_requests order by image_id"
    )
    assert [tuple(row.values()) for row in found] == [
        (n, "ddim", 2, 0, n + 1) for n in (1, 2, 3)
    ]


# --- Networks that no model computes ------------------------------------------

BAD_CONFIGS: dict[str, Any] = {
    "time_embedding_type": "fourier",
    "mid_block_type": None,
    "mid_block_scale_factor": 2,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "downsample_padding": 2,
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "timestep",
    "num_class_embeds": 10,
    "act_fn": "gelu",
    "down_block_types": ["SkipDownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "out_channels": 6,
    "sample_size": 30,
    "layers_per_block": [1, 2, 2, 1],
    "norm_num_groups": 7,
    "attn_norm_num_groups": 7,
    "attention_head_dim": 7,
    "block_out_channels": [24, 32, 64, 9600],
    "norm_eps": 0,
    "_class_name": "UNet2DConditionModel",
}


@pytest.mark.parametrize("key", BAD_CONFIGS)
def test_generator_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """By the name of the key, and nothing is written."""
    source = shutil.copytree(UNET_TWIN / "unet", tmp_path / "unet") / "config.json"
    config = json.loads(source.read_text(encoding="utf-8"))
    source.write_text(json.dumps({**config, key: BAD_CONFIGS[key]}), encoding="utf-8")
    target = generate_network.Target(
        models=tmp_path / "models",
        insight=tmp_path / "models_insight",
        picture=tmp_path / "x.svg",
        is_ours=True,
        shows_pictures=True,
    )
    monkeypatch.setattr(generate_network, "find_target", lambda _: target)
    with pytest.raises(ExpectedError) as refusal:
        generate_network.main([str(source), "--name", "other"], standalone_mode=False)
    message = str(refusal.value)
    assert key in message or BAD_CONFIGS[key] in message
    assert not target.models.exists()
