"""gpt2_embeddings against transformers: a vector of each prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from runs import Gpt2, Row, load_checkpoint
from small_networks import POSITIONS, TEXT, make_project, save_text
from text_reference import Reference

SCHEMA = "test_text_embeddings"
TOLERANCE = 1e-4  # of the largest number, float32 against float64
TEXTS = ["It is a truth", "a", "", "¿Qué? 🦋", " the" * (POSITIONS - 1)]
POOLING = {
    "mean": lambda x: x.mean(0),
    "lasttoken": lambda x: x[-1],
    "max": lambda x: x.max(0).values,
}


def vectors(runs: Gpt2) -> dict[int, Row]:
    found = runs.query(
        f"select *, embedding::text as x from {SCHEMA}.{TEXT}_embeddings"
    )
    return {row["prompt_id"]: row for row in found}


@torch.no_grad()
def test_embeddings(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In two batches; beside prompts that go on, and others that have none."""
    folder: Path = save_text(tmp_path_factory.mktemp("text"), seed=5)
    load_checkpoint(folder, TEXT)
    project = make_project(tmp_path_factory.mktemp("project"), folder)
    reference = Reference(folder)
    network = reference.model.transformer.double()
    runs = Gpt2(dbt, connection, SCHEMA, project / "target", TEXT, project)
    rows: list[Row] = [
        {"prompt": text, "pooling_mode": mode, "max_new_tokens": n}
        for n, mode in enumerate(POOLING)
        for text in TEXTS
    ]
    rows = [{"prompt_id": n, **row} for n, row in enumerate(rows)]
    others: list[Row] = [
        {"prompt_id": 90, "prompt": "x", "pooling_mode": "median"},
        {"prompt_id": 91, "prompt": "none is asked for"},
        {"prompt_id": 92, "prompt": "With", "pooling_mode": "max", "choices": ["out"]},
    ]
    try:
        runs.complete([*rows, *others], batch_prompts=9)
        found = vectors(runs)
        assert "mean or lasttoken or max, not" in found.pop(90)["error"]
        for row in [*rows, others[2]]:
            token_ids = reference.encode(row)
            hidden = network(torch.tensor([token_ids])).last_hidden_state[0]
            expected = POOLING[row["pooling_mode"]](hidden)
            ours = found.pop(row["prompt_id"])
            assert ours["tokens"] == len(token_ids)
            assert ours["pooling_mode"] == row["pooling_mode"]
            assert json.loads(ours["x"]) == pytest.approx(
                expected.tolist(), abs=TOLERANCE * expected.abs().max().item()
            ), row
        assert found == {}
        rows[3] = {**rows[3], "prompt": "changed"}
        earlier = vectors(runs)
        runs.complete(rows)
        now = vectors(runs)
        assert [n for n in now if now[n] != earlier.get(n)] == [3]
        runs.dbt("test", "--select", TEXT, *runs.arguments(), env=runs.environment)
    finally:
        runs.drop()
        runs.execute(f"drop schema {TEXT} cascade")
