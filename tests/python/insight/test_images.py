"""What ddpm_insight shows of the bundled UNet, beside diffusers and numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from image_reference import Reference, check_close, noise_image, scheduler_step
from runs import UNET_TWIN, Ddpm, Row, load_checkpoint

# Of two schedulers; the layers keep the images of the last step.
IMAGES: list[Row] = [
    {"image_id": 1, "scheduler": "ddpm", "num_inference_steps": 3, "seed": 11},
    {
        "image_id": 4,
        "scheduler": "ddim",
        "num_inference_steps": 3,
        "eta": 0.5,
        "seed": -12,
    },
]
BY_ID = {row["image_id"]: row for row in IMAGES}
SCHEMA = "test_insight_images"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(UNET_TWIN)


@pytest.fixture(scope="module")
def ddpm(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ddpm]:
    """The images are drawn, and looked into."""
    load_checkpoint(UNET_TWIN, "ddpm_twin")
    runs = Ddpm(dbt, connection, SCHEMA, tmp_path_factory.mktemp("target"))
    runs.write_requests(IMAGES)
    runs.run("--select", "ddpm", "ddpm_insight")
    yield runs
    runs.drop()


@torch.no_grad()
def draw(reference: Reference, row: Row) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """At each step the sample, and the picture that diffusers predicts from it."""
    scheduler = reference.scheduler(row)
    sample = reference.start(row)[None]
    found = []
    for step, timestep in enumerate(scheduler.timesteps):
        after, predicted = scheduler_step(
            scheduler,
            reference.unet(sample, timestep).sample,
            timestep,
            sample,
            row.get("eta", 0),
            noise_image(row["seed"], step + 1, reference.shape)[None],
        )
        found.append((sample[0], predicted[0]))
        sample = after
    return found


@pytest.fixture(scope="module")
def drawn(reference: Reference) -> dict[int, list[tuple[torch.Tensor, torch.Tensor]]]:
    return {row["image_id"]: draw(reference, row) for row in IMAGES}


@pytest.mark.parametrize("image_id", BY_ID)
def test_predictions(ddpm: Ddpm, reference: Reference, drawn: dict, image_id: int):
    """Those of each step are diffusers' pred_original_sample."""
    steps = ddpm.query(
        f"select distinct step, timestep from {SCHEMA}.ddpm_predictions "
        "where image_id = %s order by step",
        [image_id],
    )
    timesteps = reference.scheduler(BY_ID[image_id]).timesteps.tolist()
    assert [tuple(row.values()) for row in steps] == list(enumerate(timesteps))
    for step, (_, expected) in enumerate(drawn[image_id]):
        found = ddpm.tensor(
            f"{SCHEMA}.ddpm_predictions",
            "channels",
            f"image_id = {image_id} and step = {step}",
        )
        check_close(found[0].permute(2, 0, 1), expected, f"image {image_id}, {step}")


def components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of [places, n] the first three principal components, and what each explains."""
    centred = x - x.mean(0)
    _, sizes, weights = np.linalg.svd(centred, full_matrices=False)
    weights = weights[:3]
    largest = weights[np.arange(len(weights)), np.abs(weights).argmax(1)]
    return centred @ (weights * np.sign(largest)[:, None]).T, sizes**2 / sum(sizes**2)


def test_components(ddpm: Ddpm) -> None:
    """Of every layer that is shown, as numpy's singular values give them."""
    rows = ddpm.query(
        "select layer_name, image_id, component, min(explained) as explained, "
        "array_agg(value order by y, x) as found "
        f"from {SCHEMA}.ddpm_activation_components group by 1, 2, 3 order by 1, 2, 3"
    )
    layers = {row["layer_name"] for row in rows}
    assert len(layers) > 30
    assert len(rows) == len(layers) * len(IMAGES) * 3
    compared = 0
    for layer in layers:
        x = ddpm.tensor(f"{ddpm.layer_schema}.{layer}", "activation").double().numpy()
        for number, image_id in enumerate(BY_ID):
            expected, explained = components(x[number].reshape(-1, x.shape[-1]))
            for row in rows:
                if (row["layer_name"], row["image_id"]) != (layer, image_id):
                    continue
                n = row["component"] - 1
                what = f"{layer}, image {image_id}, component {n + 1}"
                assert row["explained"] == pytest.approx(explained[n], abs=1e-3), what
                # of nearly equal variances any mixture is right
                around = explained[: n + 2]
                if (around[:-1] > 1.2 * around[1:]).all():
                    compared += 1
                    largest = np.abs(expected[:, n]).max()
                    assert row["found"] == pytest.approx(
                        expected[:, n], abs=1e-3 * largest
                    ), what
    assert compared > len(rows) / 2


def test_place_attention(ddpm: Ddpm, reference: Reference, drawn: dict) -> None:
    """The middle's weights, as softmax of diffusers' own queries and keys."""
    samples = [steps[-1][0] for steps in drawn.values()]
    timesteps = [int(reference.scheduler(row).timesteps[-1]) for row in IMAGES]
    layers = reference.layers(samples, timesteps)
    size = reference.unet.config.attention_head_dim
    rows = ddpm.query(
        "select layer_name, image_id, head, min(query_y) as y, min(query_x) as x, "
        "array_agg(pattern order by key_y, key_x) as found "
        f"from {SCHEMA}.ddpm_place_attention group by 1, 2, 3"
    )
    paths = {
        path.removesuffix(".to_q"): f"ddpm_{path[:-5].replace('.', '_')}"
        for path in layers
        if path.endswith(".to_q")
    }
    assert {row["layer_name"] for row in rows} == set(paths.values())
    names = {name: path for path, name in paths.items()}
    for row in rows:
        path = names[row["layer_name"]]
        image = list(BY_ID).index(row["image_id"])
        q, k = (
            layers[f"{path}.to_{part}"][image].unflatten(-1, (-1, size))[:, row["head"]]
            for part in "qk"
        )
        side = int(len(k) ** 0.5)
        assert (row["y"], row["x"]) == (side // 2, side // 2)
        expected = torch.softmax(k @ q[row["y"] * side + row["x"]] / size**0.5, 0)
        assert row["found"] == pytest.approx(expected.tolist(), abs=1e-4)
    heads = sum(layers[f"{path}.to_q"].shape[-1] // size for path in paths)
    assert len(rows) == heads * len(IMAGES)


def test_chosen(ddpm: Ddpm) -> None:
    """One image, and the attention of a pixel at the edge."""
    chosen = {"ddpm_insight": {"image_ids": [4], "place": [31, 0]}}
    ddpm.run("--select", "ddpm_insight", **chosen)
    for relation in ("predictions", "activation_components", "place_attention"):
        found = ddpm.query(f"select distinct image_id from {SCHEMA}.ddpm_{relation}")
        assert [row["image_id"] for row in found] == [4]
    [place] = ddpm.query(
        "select distinct query_y, query_x "
        f"from {SCHEMA}.ddpm_place_attention where layer_name ~ 'mid_block'"
    )
    assert list(place.values()) == [3, 0]
    ddpm.dbt(
        *("test", "--select", "ddpm_insight", *ddpm.arguments()),
        env=ddpm.environment,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": [1]}, 'no option is named "images": there are image_ids, place'),
        ({"place": [1]}, "place is [1]: give a pixel, [y, x] from 0"),
        ({"image_ids": "1"}, 'image_ids is "1": give a list of image ids'),
        ([1], "the var ddpm_insight is [1]: give a dict"),
    ],
)
def test_bad_options(ddpm: Ddpm, given: object, message: str) -> None:
    done = ddpm.run(*("--select", "ddpm_insight"), check=False, ddpm_insight=given)
    assert done.returncode != 0
    assert message in done.stdout
