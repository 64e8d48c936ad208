"""Runs at the edges: nothing to do, numbers near 0, a var that makes no sense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from psycopg2.extensions import connection as Connection
from transformers import GPT2LMHeadModel

from conftest import Dbt
from image_reference import Reference as ImageReference
from image_reference import check_close
from runs import Ddpm, Gpt2, Row, load_checkpoint
from small_networks import IMAGE, TEXT, make_project, save_image, save_text
from text_reference import Reference

SCHEMA = "test_edges"
# Every layer that has bands is shared, however little it has to do.
EAGER = {"work_per_process": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints, with numbers whose products are below float32's range.

    They are a norm's weight, a head's scores, and a group of channels.
    """
    text = save_text(tmp_path_factory.mktemp("text"), seed=1)
    gpt2 = GPT2LMHeadModel.from_pretrained(text)
    image = save_image(tmp_path_factory.mktemp("image"), seed=1)
    unet = UNet2DModel.from_pretrained(image / "unet")
    with torch.no_grad():
        first, second = gpt2.transformer.h
        first.ln_1.weight[3] = 1e-44
        head = gpt2.config.n_embd // gpt2.config.n_head
        for start in (0, gpt2.config.n_embd):  # its queries and its keys
            second.attn.c_attn.weight[:, start : start + head] *= 1e-22
            second.attn.c_attn.bias[start : start + head] *= 1e-22
        group = unet.config.block_out_channels[0] // unet.config.norm_num_groups
        unet.conv_in.weight[:group] *= 1e-24
        unet.conv_in.bias[:group] *= 1e-24
    gpt2.save_pretrained(text)
    unet.save_pretrained(image / "unet")
    return {TEXT: text, IMAGE: image}


@pytest.fixture(scope="module")
def project(
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    connection: Connection,
) -> Iterator[Path]:
    text, image = folders.values()
    for folder, name in ((text, TEXT), (image, IMAGE)):
        load_checkpoint(folder, name)
    with connection.cursor() as cursor:
        cursor.execute("show max_parallel_workers_per_gather")
        assert cursor.fetchone() != ("0",)
    yield make_project(tmp_path_factory.mktemp("project"), text, image)
    with connection.cursor() as cursor:
        for name in (TEXT, IMAGE):
            cursor.execute(f"drop schema {name} cascade")


@pytest.fixture
def gpt2(project: Path, dbt: Dbt, connection: Connection) -> Iterator[Gpt2]:
    runs = Gpt2(
        dbt, connection, SCHEMA, project / "target", TEXT, project,
        {f"{TEXT}_options": {"max_new_tokens": 2}, **EAGER},
    )  # fmt: skip
    yield runs
    runs.drop()


@pytest.fixture
def ddpm(project: Path, dbt: Dbt, connection: Connection) -> Iterator[Ddpm]:
    runs = Ddpm(
        dbt, connection, SCHEMA, project / "target", IMAGE, project, dict(EAGER)
    )
    yield runs
    runs.drop()


def write(runs: Gpt2 | Ddpm, select: str) -> None:
    """Make the relation of a run's input."""
    name = "test_prompts" if isinstance(runs, Gpt2) else "test_requests"
    runs.execute(f"drop table if exists {SCHEMA}.{name}")
    runs.execute(f"create table {SCHEMA}.{name} as {select}")


def test_no_prompts(gpt2: Gpt2) -> None:
    """At first, later, and with --full-refresh; no rows, and rows with an error."""

    def check(select: str, *flags: str) -> dict[int, Row]:
        write(gpt2, select)
        assert "nothing new to generate" in gpt2.run(*flags).stdout
        return gpt2.completions()

    assert check("select 1 as prompt_id, 'She'::text as prompt where false") == {}
    [row] = check("select 1 as prompt_id, null::text as prompt").values()
    assert row["completion"] is None
    write(gpt2, "select 2 as prompt_id, 'She was'::text as prompt")
    gpt2.run()
    assert len(gpt2.completions()[2]["token_ids"]) == 2
    errors = "select 3 as prompt_id, null::text as prompt"
    assert list(check(errors, "--full-refresh")) == [3]


def test_no_images(ddpm: Ddpm) -> None:
    """The same; images that are not asked for any more are forgotten, as ever."""

    def images() -> list[int]:
        found = ddpm.query(
            f"select distinct image_id from {SCHEMA}.{IMAGE}_images order by 1"
        )
        return [row["image_id"] for row in found]

    def check(select: str, *flags: str) -> None:
        write(ddpm, select)
        assert "nothing new to draw" in ddpm.run(*flags).stdout
        assert images() == []

    check("select 1 as image_id where false")
    check("select 1 as image_id, 0 as num_inference_steps")
    write(ddpm, "select 2 as image_id, 2 as num_inference_steps")
    assert "step 2 of 2" in ddpm.run().stdout
    assert images() == [2]
    check("select 1 as image_id where false", "--full-refresh")


def test_numbers_near_zero(gpt2: Gpt2, folders: dict[str, Path]) -> None:
    """The text is that of transformers, beside rows whose options are as extreme."""
    rows: list[Row] = [
        {"prompt_id": 1, "prompt": "It is a truth"},
        {"prompt_id": 2, "prompt": "She was", "repetition_penalty": 1e38},
        {"prompt_id": 3, "prompt": "She was", "temperature": 1e306},
        {"prompt_id": 4, "prompt": "She was", "min_p": 5e-324},
    ]
    rows = [{**row, "max_new_tokens": 6} for row in rows]
    found = gpt2.complete(rows)
    reference = Reference(folders[TEXT])
    expected = reference.generate(rows[0], max_new_tokens=6)
    assert found[1]["token_ids"] == expected
    for row in found.values():
        assert row["error"] is None
        assert len(row["token_ids"]) == 6 or row["finish_reason"] != "length"


def test_dead_group(ddpm: Ddpm, folders: dict[str, Path]) -> None:
    """The image is that of diffusers."""
    row = {
        "image_id": 1, "scheduler": "ddim", "num_inference_steps": 2, "seed": 4,
    }  # fmt: skip
    ddpm.draw([row])
    for step, expected in enumerate(ImageReference(folders[IMAGE]).draw(row)):
        check_close(ddpm.samples(1, step), expected, f"step {step}")


def test_a_model_alone(gpt2: Gpt2) -> None:
    """In a schema where the network was never run, it says what to run."""
    completions = f"{TEXT}_completions"
    done = gpt2.run("--select", completions, check=False)
    assert done.returncode == 1
    assert f"{completions} reads {TEXT}_" in done.stdout
    assert f"run all of the network, dbt run --select {TEXT}" in done.stdout


BAD_SETTINGS: dict[str, list[Any]] = {
    "work_per_process": [0, "many"],
    "batch_memory": ["-1GB"],
    "batch_prompts": [0, 1.5],
    "resident_memory": ["two apples"],
}
MEANS = {"work_per_process": "above 0", "batch_prompts": "above 0"}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_setting(gpt2: Gpt2, name: str) -> None:
    """The first model refuses it: nothing is compiled, so nothing is run."""
    for value in BAD_SETTINGS[name]:
        done = gpt2.run("--select", f"{TEXT}_prompts", check=False, **{name: value})
        assert done.returncode != 0
        assert f"the var {name} is {json.dumps(value)}: " in done.stdout
        assert MEANS.get(name, "size of memory") in done.stdout
        assert "Traceback" not in done.stdout
