"""The image network in dbt against `diffusers`: every layer, and the pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from dbt_nn import generate as generate_network
from image_reference import (
    Reference,
    check_close,
    check_layers,
    gaussian_noise,
    random_unet,
    save_pipeline,
)
from runs import UNET_TWIN, Ddpm, Row, copy_bare_project, entered, load_checkpoint

# Each has another number of steps, so the timesteps of a batch differ.
IMAGES: list[Row] = [
    {"image_id": 1, "scheduler": "ddpm", "num_inference_steps": 5, "seed": 11},
    {"image_id": 4, "scheduler": "ddim", "num_inference_steps": 6, "seed": -12},
    {
        "image_id": 9,
        "scheduler": "ddim",
        "num_inference_steps": 8,
        "eta": 1.0,
        "seed": 2**40,
    },
]
BY_ID = {row["image_id"]: row for row in IMAGES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin, a copy: what is loaded is what the oracle reads."""
    return shutil.copytree(UNET_TWIN, tmp_path_factory.mktemp("twin") / "ddpm-twin")


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
    load_checkpoint(folder, "ddpm_twin")
    runs = Ddpm(dbt, connection, "test_unet", tmp_path_factory.mktemp("target"))
    runs.write_requests(IMAGES)
    yield runs
    runs.drop()


@pytest.fixture(scope="module")
def first_layers(ddpm: Ddpm) -> dict[str, torch.Tensor]:
    """The layers before the first step, when the images have different timesteps."""
    ddpm.run("--select", "+ddpm_conv_out")
    return ddpm.layers()


@pytest.fixture(scope="module")
def drawn(ddpm: Ddpm, first_layers: dict[str, torch.Tensor]) -> list[Row]:
    """All steps of all images."""
    ddpm.run()
    return ddpm.rows()


@pytest.fixture(scope="module")
def pictures(reference: Reference) -> dict[int, list[torch.Tensor]]:
    """The samples of all steps, as diffusers draws them, by image."""
    return {row["image_id"]: reference.draw(row) for row in IMAGES}


# --- Noise --------------------------------------------------------------------


def test_noise_is_the_databases(ddpm: Ddpm, drawn: list[Row]) -> None:
    """The Python that feeds diffusers gives the numbers of the SQL."""
    places = [
        *((seed, 3, 5, 7, 3) for seed in (0, 1, -12, 2**62, -(2**63))),
        *((8, step, 0, 31, 4) for step in (0, 1, 999)),
        (8, 1, 31, 0, 1),
    ]
    for place in places:
        [found] = ddpm.query(
            f"select {ddpm.schema}.gaussian_noise(%s, %s, %s, %s, %s)::real[] as noise",
            place,
        )
        assert found["noise"] == pytest.approx(gaussian_noise(*place), rel=1e-6)


def test_noise_is_standard_normal(ddpm: Ddpm, drawn: list[Row]) -> None:
    """Its moments, and none of its four neighbours, steps and seeds alike."""
    ddpm.execute("drop table if exists noises")
    ddpm.execute(f"""
        create temporary table noises as
        select seed, step, y, x, {ddpm.schema}.gaussian_noise(
            seed, step, y, x, 4
        ) as noise
        from generate_series(0, 1) as seed, generate_series(0, 1) as step,
            generate_series(0, 63) as y, generate_series(0, 63) as x
    """)
    with ddpm.connection.cursor() as cursor:
        cursor.execute(
            "select string_agg(substring(vector_send(noise) from 5), '' "
            "order by seed, step, y, x) from noises"
        )
        [[values]] = cursor
    noise = np.frombuffer(values, ">f4").astype("f8").reshape(2, 2, 64, 64, 4)
    n = noise.size
    # five standard errors of each moment
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (noise**power).mean() == pytest.approx(
            moment, abs=5 * (variance / n) ** 0.5
        )
    for axis in range(5):
        products = noise * np.roll(noise, 1, axis)
        # two of an axis are each other's neighbours twice
        assert abs(products.mean()) < 5 * (2 / n) ** 0.5


# --- The twin -----------------------------------------------------------------


def test_every_layer(
    ddpm: Ddpm, reference: Reference, first_layers: dict[str, torch.Tensor]
) -> None:
    """Of a batch whose images have different timesteps."""
    timesteps = [int(reference.scheduler(row).timesteps[0]) for row in IMAGES]
    assert len(set(timesteps)) == len(IMAGES)
    expected = reference.layers([reference.start(row) for row in IMAGES], timesteps)
    check_layers("ddpm", first_layers, expected)


@pytest.mark.parametrize("image_id", BY_ID)
def test_pictures(
    ddpm: Ddpm,
    drawn: list[Row],
    pictures: dict[int, list[torch.Tensor]],
    image_id: int,
) -> None:
    """The sample after every step: that of diffusers' own loop."""
    worst = 0.0
    for step, expected in enumerate(pictures[image_id]):
        found = ddpm.samples(image_id, step)
        what = f"image {image_id}, {BY_ID[image_id]['scheduler']}, step {step}"
        worst = max(worst, check_close(found, expected, what))
    assert step == BY_ID[image_id]["num_inference_steps"]
    print(f"image {image_id}: worst of {step} steps {worst:.2g}")


def check_pixels(ddpm: Ddpm, image_id: int, step: int) -> None:
    """Those of diffusers' pipeline for the same sample."""
    sample = ddpm.samples(image_id, step)
    image = (sample / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    [expected] = DDPMPipeline.numpy_to_pil(image[None])
    expected = np.asarray(expected).astype(int).reshape(image.shape)
    found = ddpm.pixels(image_id, step)
    assert found.shape == expected.shape
    # at half a level float32 and float8 may fall to either side
    scaled = image.astype("f8") * 255
    is_tie = abs(scaled - np.floor(scaled) - 0.5) < 1e-4
    assert (abs(found - expected) <= is_tie).all()
    assert is_tie.mean() < 0.01
    assert expected.std() > 5, "a picture of one colour"


def test_pixels(ddpm: Ddpm, drawn: list[Row]) -> None:
    for image_id, row in BY_ID.items():
        for step in (0, row["num_inference_steps"]):
            check_pixels(ddpm, image_id, step)


def test_timesteps_of_images(ddpm: Ddpm, reference: Reference, drawn: list[Row]):
    """Of every step's samples and pixels; the picture has -1."""
    for image_id, row in BY_ID.items():
        for view in ("images", "pixels"):
            found = ddpm.query(
                f"select distinct step, timestep from {ddpm.schema}.ddpm_{view} "
                "where image_id = %s order by step",
                [image_id],
            )
            timesteps = [*reference.scheduler(row).timesteps.tolist(), -1]
            assert [tuple(row.values()) for row in found] == list(enumerate(timesteps))


def test_layers_are_of_the_newest_step(ddpm: Ddpm, drawn: list[Row]) -> None:
    """The images that were done before it are gone from every layer."""
    most = max(row["num_inference_steps"] for row in IMAGES)
    last = {row["image_id"] for row in IMAGES if row["num_inference_steps"] == most}
    for name in ddpm.layer_models():
        found = ddpm.query(f"select distinct image_id from {ddpm.layer_schema}.{name}")
        assert {row["image_id"] for row in found} == last, name


def test_a_step_takes_the_room_of_the_one_before(ddpm: Ddpm, drawn: list[Row]) -> None:
    """A row of a page and its next version take turns: nothing grows."""
    layer = f"{ddpm.layer_schema}.ddpm_down_blocks_0_resnets_0_conv1"
    sizes = []
    for _ in range(6):
        with entered(ddpm.connection, ddpm.layer_schema, ddpm.schema) as cursor:
            cursor.execute(f"select {layer}_forward()")
        [found] = ddpm.query(f"select pg_total_relation_size('{layer}') as bytes")
        sizes.append(found["bytes"])
    assert sizes[-1] == sizes[0]


def test_an_image_of_a_batch_is_the_same_alone(
    ddpm: Ddpm, reference: Reference, drawn: list[Row]
) -> None:
    """To the last bit, drawn again from the start; its layers are its last step's."""
    [row] = [row for row in IMAGES if row["scheduler"] == "ddpm"]
    ddpm.write_requests([{**row, "image_id": 30}])
    ddpm.run("--full-refresh")
    expected = [
        {**each, "image_id": 30}
        for each in drawn
        if each["image_id"] == row["image_id"]
    ]
    assert ddpm.rows() == expected
    last = row["num_inference_steps"] - 1
    timestep = int(reference.scheduler(row).timesteps[last])
    layers = reference.layers([ddpm.samples(30, last)], [timestep])
    check_layers("ddpm", ddpm.layers(), layers)


# --- Other shapes -------------------------------------------------------------

FLAT = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
ATTENTIVE = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# One step from this timestep on: num_inference_steps is 1.
TIMESTEP = 321
# The network, and the scheduler.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # nor any conv_shortcut on the way down
    "unet_no_attention": (
        {**FLAT, "add_attention": False, "block_out_channels": (16, 16)},
        {},
    ),
    "unet_three_levels": (
        {
            "sample_size": 48,
            "block_out_channels": (12, 24, 36),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 6,
            "attention_head_dim": 12,
        },
        {"beta_schedule": "scaled_linear"},
    ),
    "unet_one_head": (
        {**ATTENTIVE, "attention_head_dim": None, "layers_per_block": 3},
        {"prediction_type": "v_prediction", "clip_sample": False},
    ),
    "unet_not_square": (
        {**ATTENTIVE, "sample_size": [16, 24], "in_channels": 1, "out_channels": 1},
        {"clip_sample_range": 0.5},
    ),
    "unet_padding": (
        {**ATTENTIVE, "downsample_padding": 0, "sample_size": [4, 12]},
        {"beta_schedule": "squaredcos_cap_v2"},
    ),
    # an odd first width ends in a zero
    "unet_sines_first": (
        {
            **ATTENTIVE,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "block_out_channels": (15, 30),
            "norm_num_groups": 5,
            "attention_head_dim": 10,
            "time_embedding_dim": 22,
        },
        {},
    ),
    "unet_centered": (
        {**ATTENTIVE, "center_input_sample": True, "attn_norm_num_groups": 2},
        {"prediction_type": "sample"},
    ),
    # 9 * 224 inputs of an output feature are two chunks, 9 * 448 are three
    "unet_wide": (
        {**ATTENTIVE, "block_out_channels": (8, 224), "attention_head_dim": 56},
        {"variance_type": "fixed_large"},
    ),
    "unet_one_place": (
        {**ATTENTIVE, "sample_size": 2, "norm_eps": 0.01, "act_fn": "swish"},
        {},
    ),
    "unet_one_level": (
        {
            "block_out_channels": (8,),
            "down_block_types": ("AttnDownBlock2D",),
            "up_block_types": ("UpBlock2D",),
        },
        {},
    ),
}
SHAPE_IMAGES: list[Row] = [
    {
        "image_id": 2 * n,
        "scheduler": scheduler,
        "num_inference_steps": 1,
        "seed": 20 + n,
    }
    for n, scheduler in enumerate(["ddpm", "ddim"])
]


@pytest.fixture(scope="module")
def shapes(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Ddpm, Reference]]]:
    """A network of each shape in a project of their own, all run at once."""
    project = copy_bare_project(tmp_path_factory.mktemp("shapes"))
    found = {}
    for n, (name, (config, scheduler)) in enumerate(SHAPES.items()):
        unet = random_unet(
            seed=n,
            **{
                "sample_size": 8,
                "block_out_channels": (8, 16),
                "norm_num_groups": 4,
                "attention_head_dim": 8,
                "layers_per_block": 1,
                **config,
            },
        )
        folder = save_pipeline(
            project / "checkpoints" / name,
            unet,
            DDPMScheduler(**{"steps_offset": TIMESTEP, **scheduler}),
        )
        generate_network.write(
            project / "models" / name, generate_network.generate(folder, name)
        )
        load_checkpoint(folder, name)
        runs = Ddpm(
            dbt, connection, "test_shapes", project / "target", name, project,
            {f"{each}_requests": "test_shapes.test_requests" for each in SHAPES},
        )  # fmt: skip
        found[name] = (runs, Reference(folder))
    runs.write_requests(SHAPE_IMAGES)
    try:
        runs.run("--select", *SHAPES)
        yield found
    finally:
        for name, (runs, _) in found.items():
            runs.drop()
            runs.execute(f"drop schema if exists {name} cascade")


def check_one_step(runs: Ddpm, reference: Reference, rows: list[Row]) -> None:
    """All layers, the pictures and their pixels."""
    starts = [reference.start(row) for row in rows]
    for row, start in zip(rows, starts, strict=True):
        check_close(runs.samples(row["image_id"], 0), start, "noise")
    expected = reference.layers(starts, [TIMESTEP] * len(rows))
    check_layers(runs.network, runs.layers(), expected)
    for row in rows:
        [_, expected_picture] = reference.draw(row)
        picture = runs.samples(row["image_id"], 1)
        relative = check_close(picture, expected_picture, f"picture {row}")
        print(f"{runs.network}: picture by {row['scheduler']} {relative:.2g}")
        check_pixels(runs, row["image_id"], 1)


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shapes: dict[str, tuple[Ddpm, Reference]], shape: str) -> None:
    check_one_step(*shapes[shape], SHAPE_IMAGES)


@pytest.mark.long
def test_full_size(ddpm: Ddpm, drawn: list[Row], tmp_path: Path) -> None:
    """The configuration of the butterflies, 63M, with random weights."""
    unet = random_unet(
        seed=40,
        sample_size=64,
        block_out_channels=(64, 128, 256, 512),
        layers_per_block=2,
        down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2,
    )
    assert round(sum(p.numel() for p in unet.parameters()) / 1e4) == 6315
    folder = save_pipeline(tmp_path, unet, DDIMScheduler(steps_offset=TIMESTEP))
    load_checkpoint(folder, "test_unet_full")
    full = Ddpm(
        ddpm.dbt, ddpm.connection, "test_unet_size", ddpm.target,
        variables={"ddpm_checkpoint": "test_unet_full"},
    )  # fmt: skip
    try:
        full.draw(SHAPE_IMAGES[1:])
        check_one_step(full, Reference(folder), SHAPE_IMAGES[1:])
    finally:
        full.drop()
        full.execute("drop schema test_unet_full cascade")
