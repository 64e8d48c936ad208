"""Each kernel's plain form against its fast one, layer by layer, on random networks.

`make check` compares both forms of the bundled networks with transformers and
diffusers; dbt's unit tests of the kernels run on both, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from psycopg2.extensions import connection as Connection
from test_mutations import statuses
from transformers import GPT2Config

from conftest import Dbt
from dbt_nn import generate as generate_network
from image_reference import random_unet, save_pipeline
from macros import copy_unit_tests
from runs import Ddpm, Gpt2, copy_bare_project, load_checkpoint
from small_networks import UNET
from text_reference import Reference as TextReference
from text_reference import check_logits, save_network

# Of a layer's largest value: sums in float32 beside float8, over all layers.
TOLERANCE = 1e-4

SCHEMA = "test_plain"
Layers = dict[str, np.ndarray]

# Odd in every way; an input of more than 1,920 numbers comes in chunks.
TEXTS: dict[str, dict[str, Any]] = {
    "plain_narrow": {"n_embd": 15, "n_head": 5, "n_inner": 2001, "n_layer": 1},
    "plain_wide": {"n_embd": 66, "n_head": 3, "n_inner": 7, "n_layer": 2},
}
IMAGES: dict[str, dict[str, Any]] = {
    "plain_small": {"sample_size": (6, 10)},
    "plain_deep": {
        "sample_size": (4, 8),
        "block_out_channels": (6, 9, 12),
        "norm_num_groups": 3,
        "attention_head_dim": 3,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
}
POSITIONS = 70
PROMPTS = [
    {"prompt_id": 1, "prompt_token_ids": list(range(64)), "max_new_tokens": 4},
    {"prompt_id": 2, "prompt_token_ids": [5], "max_new_tokens": 3},
]
REQUESTS = [
    {"image_id": n, "scheduler": "ddim", "num_inference_steps": 2, "seed": n}
    for n in (1, 2)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def project(connection: Connection, folder: Path) -> Iterator[Path]:
    """The project with these networks alone, their checkpoints loaded."""
    project = copy_bare_project(folder / "project")
    for seed, (name, shape) in enumerate(TEXTS.items()):
        config = GPT2Config(
            vocab_size=131, n_positions=POSITIONS, bos_token_id=0, eos_token_id=None,
            **shape,
        )  # fmt: skip
        save_network(folder / name, config, seed)
    for seed, (name, shape) in enumerate(IMAGES.items()):
        unet = random_unet(seed=seed, **(UNET | shape))
        save_pipeline(folder / name, unet, DDIMScheduler())
    for name in TEXTS | IMAGES:
        load_checkpoint(folder / name, name)
        files = generate_network.generate(folder / name, name)
        generate_network.write(project / "models" / name, files)
    yield project
    for name in TEXTS | IMAGES:
        connection.cursor().execute(f"drop schema {name} cascade")


def read_layers(runs: Gpt2 | Ddpm, network: str) -> Layers:
    """Every layer's numbers, place by place in the order of the primary key."""
    layers = {}
    folder = runs.project / "models" / network / "layers"
    for path in sorted(folder.rglob("*.sql"), key=lambda path: path.name):
        if path.stem.endswith("_kv_blocks"):
            continue  # they repeat keys and values
        [place] = runs.query(
            "select string_agg(attname, ', ' order by attnum) as columns "
            "from pg_index join pg_attribute on attrelid = indrelid "
            f"where indrelid = '{SCHEMA}_{network}.{path.stem}'::regclass "
            "and indisprimary and attnum = any(indkey)"
        )
        value = "logits" if path.stem.endswith("_lm_head") else "activation::real[]"
        rows = runs.query(
            f"select {value} as value from {SCHEMA}_{network}.{path.stem} "
            f"order by {place['columns']}"
        )
        layers[path.stem] = np.array([row["value"] for row in rows], dtype="f8")
    return layers


def check_same(fast: Layers, plain: Layers) -> None:
    assert fast.keys() == plain.keys()
    assert fast
    for name, expected in plain.items():
        assert fast[name].shape == expected.shape, name
        difference = np.abs(fast[name] - expected)
        place, channel = np.unravel_index(difference.argmax(), difference.shape)
        if not difference.max() <= TOLERANCE * np.abs(expected).max():
            shown = slice(max(channel - 2, 0), channel + 3)
            pytest.fail(
                f"{name}: largest difference {difference.max():.3g} at place "
                f"{place}, channel {channel}\n"
                f"  fast   {fast[name][place, shown]}\n"
                f"  plain  {expected[place, shown]}",
                pytrace=False,
            )


@pytest.mark.parametrize("network", TEXTS)
def test_text(
    dbt: Dbt, connection: Connection, project: Path, folder: Path, network: str
) -> None:
    """Prompts and single tokens, whole blocks of keys and values and a rest."""
    runs = Gpt2(
        dbt, connection, SCHEMA, folder / "target", network, project,
        {f"{network}_all_logits": True},
    )  # fmt: skip
    tokens, layers = [], []
    for kernels in ("fast", "plain"):
        completions = runs.complete(PROMPTS, "--full-refresh", kernels=kernels)
        tokens.append({n: row["token_ids"] for n, row in completions.items()})
        layers.append(read_layers(runs, network))
    assert tokens[0] == tokens[1]
    check_same(*layers)
    reference = TextReference(folder / network, tokenizer=False)
    for row in PROMPTS:
        n = row["prompt_id"]
        known = row["prompt_token_ids"] + tokens[1][n][:-1]
        check_logits(runs.logits(n), reference.logits(known), f"prompt {n}")
    runs.execute(f"drop schema {SCHEMA}, {SCHEMA}_{network} cascade")


@pytest.mark.parametrize("network", IMAGES)
def test_images(
    dbt: Dbt, connection: Connection, project: Path, folder: Path, network: str
) -> None:
    runs = Ddpm(dbt, connection, SCHEMA, folder / "target", network, project)
    layers = []
    for kernels in ("fast", "plain"):
        runs.write_requests(REQUESTS)
        runs.run("--full-refresh", kernels=kernels)
        layers.append(read_layers(runs, network))
    check_same(*layers)
    runs.execute(f"drop schema {SCHEMA}, {SCHEMA}_{network} cascade")


@pytest.mark.long
def test_unit_tests(dbt: Dbt, tmp_path: Path) -> None:
    """The unit tests of the macros, with every kernel in its plain form."""
    project = copy_unit_tests(dbt, tmp_path)
    target = tmp_path / "target"
    dbt(
        *("test", "--select", "test_type:unit", "--vars", "{kernels: plain}"),
        *("--project-dir", str(project)),
        env={"DBT_NN_SCHEMA": SCHEMA, "DBT_TARGET_PATH": str(target)},
        check=False,
    )
    found = statuses(target)
    assert found
    assert {name: status for name, status in found.items() if status != "pass"} == {}
