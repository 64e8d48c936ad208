"""Weights in half precision: `load_checkpoint.py --dtype float16`.

The oracle is the network of transformers or diffusers with its matrices rounded
to float16, and what they are multiplied with as well; the sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from psycopg2.extensions import connection as Connection
from safetensors.torch import load_file, save_file

from conftest import Dbt, run_script
from image_reference import Reference as ImageReference
from runs import TWIN, UNET_TWIN, Ddpm, Gpt2, Row
from small_networks import halve, save_text
from text_reference import Reference

PROMPTS: list[Row] = [
    {"prompt_id": 1, "prompt": "It is a truth", "max_new_tokens": 8},
    {"prompt_id": 2, "prompt": "Anne", "max_new_tokens": 5},
]
IMAGE: Row = {"image_id": 1, "scheduler": "ddim", "num_inference_steps": 2, "seed": 3}
# A number that float32 rounding moves over the middle of two float16 ones differs
# by 1e-3 of itself; few do.
TOLERANCE = 2e-3


def load(folder: Path, name: str, dtype: str = "float16") -> Any:
    return run_script(
        *("load_checkpoint.py", str(folder), "--name", name),
        *("--if-changed", "--dtype", dtype),
    )


def check(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    difference = (ours - reference).abs().max() / reference.abs().max()
    assert difference < TOLERANCE


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gpt2]:
    done = load(TWIN, "test_half_text")
    assert done.returncode == 0, done.stderr
    runs = Gpt2(
        dbt, connection, "test_half", tmp_path_factory.mktemp("target"),
        variables={"gpt2_all_logits": True, "gpt2_checkpoint": "test_half_text"},
    )  # fmt: skip
    yield runs
    runs.drop()
    connection.cursor().execute("drop schema test_half_text cascade")


def test_text(gpt2: Gpt2) -> None:
    """At every position, of prompts together and of one token alone."""
    reference, exact = Reference(TWIN), Reference(TWIN)
    halve(reference.model)
    completions = gpt2.complete(PROMPTS)
    for row in PROMPTS:
        token_ids = reference.encode(row)
        token_ids += completions[row["prompt_id"]]["token_ids"][:-1]
        logits = gpt2.logits(row["prompt_id"])
        check(logits, reference.logits(token_ids))
        # so it was rounded at all
        assert not torch.allclose(logits, exact.logits(token_ids), rtol=0, atol=1e-4)


@pytest.mark.long
def test_image(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    done = load(UNET_TWIN, "test_half_image")
    assert done.returncode == 0, done.stderr
    runs = Ddpm(dbt, connection, "test_half", tmp_path_factory.mktemp("target"))
    reference = ImageReference(UNET_TWIN)
    halve(reference.unet)
    runs.draw([IMAGE], ddpm_checkpoint="test_half_image")
    try:
        for step, sample in enumerate(reference.draw(IMAGE)):
            check(runs.samples(1, step), sample)
    finally:
        runs.drop()
        connection.cursor().execute("drop schema test_half_image cascade")


def test_it_is_another_checkpoint(connection: Connection, tmp_path: Path) -> None:
    """--if-changed loads it anew, in half the room."""
    folder = save_text(tmp_path, seed=4)
    cursor = connection.cursor()
    sizes = []
    for dtype in ("float32", "float16"):
        done = load(folder, "test_half_other", dtype)
        assert "Loaded test_half_other" in done.stdout, done.stderr
        assert "unchanged" in load(folder, "test_half_other", dtype).stdout
        cursor.execute("select sum(pg_column_size(weight)) from test_half_other.wte")
        sizes += cursor.fetchone()
    assert sizes[1] < 0.6 * sizes[0]
    cursor.execute("drop schema test_half_other cascade")


def test_a_weight_that_is_too_large(connection: Connection, tmp_path: Path) -> None:
    folder = save_text(tmp_path, seed=5)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.0.mlp.c_fc.weight"][3, 2] = -7e4
    save_file(tensors, file, {"format": "pt"})
    done = load(folder, "test_half_large")
    assert done.returncode == 1
    for part in ("h.0.mlp.c_fc.weight", "70000", "65,504", "--dtype"):
        assert part in done.stderr
    cursor = connection.cursor()
    cursor.execute("select to_regnamespace('test_half_large') is null")
    assert cursor.fetchone() == (True,)
