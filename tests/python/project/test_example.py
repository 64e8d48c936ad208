"""The example projects use dbt_nn as a package, beside tables of their own."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
import torch
import yaml
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertForSequenceClassification

from dbt_nn.hub import fetch
from runs import PROJECT, TWIN, load_checkpoint
from small_networks import save_encoder
from text_reference import Reference

EXAMPLES = PROJECT / "examples"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# A distance is a sum of 384 products in float32, and is rounded to four digits.
DISTANCE = 6e-5
SCORE = 1e-5


@dataclass
class Example:
    """A copy of an example project, whose package is this one."""

    folder: Path
    schema: str
    connection: Connection

    def command(self, *arguments: str, succeeds: bool = True) -> str:
        """Run a module of Python in its folder, as a user would."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "DBT_NN_SCHEMA": self.schema,
                "DBT_TARGET_PATH": str(self.folder / "target"),
                "PYTHONPATH": str(PROJECT),
            },
            check=False,
            timeout=600,
        )
        assert (done.returncode == 0) is succeeds, done.stdout + done.stderr
        return done.stdout

    def dbt(self, *arguments: str, succeeds: bool = True) -> str:
        return self.command("dbt.cli.main", *arguments, succeeds=succeeds)

    def rows(self, model: str, order: str) -> list[dict[str, Any]]:
        with self.connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(f"select * from {self.schema}.{model} order by {order}")
            return [dict(row) for row in cursor]

    def schemas(self) -> set[str]:
        """All that begin with its own."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "select nspname from pg_namespace where starts_with(nspname, %s)",
                [self.schema],
            )
            return {name for (name,) in cursor.fetchall()}

    def drop(self) -> None:
        with self.connection.cursor() as cursor:
            for schema in self.schemas():
                cursor.execute(f"drop schema {schema} cascade")


def copy_example(name: str, folder: Path, connection: Connection) -> Example:
    """Copy and install it as its README says."""
    ignored = shutil.ignore_patterns("dbt_packages", "target", "logs", "*-lock.yml")
    shutil.copytree(EXAMPLES / name, folder / name, ignore=ignored)
    packages = folder / name / "packages.yml"
    packages.write_text(packages.read_text().replace("../..", str(PROJECT)))
    example = Example(folder / name, f"test_{name}", connection)
    example.drop()
    example.dbt("deps")
    return example


@pytest.mark.long
def test_warehouse(connection: psycopg2.extensions.connection, tmp_path: Path) -> None:
    """Build it as its README says, and compare with transformers."""
    load_checkpoint(TWIN, "gpt2_twin")
    example = copy_example("warehouse", tmp_path, connection)

    # a model that has the name of the default prompts before they had a prefix
    models = example.folder / "models"
    (models / "prompts.sql").write_text("select 1 as prompt_id")

    openings = models / "openings.sql"
    query = openings.read_text()
    openings.write_text("{{ config(materialized='ephemeral') }}\n" + query)
    refusal = example.dbt(
        "--warn-error", "run", "--select", "gpt2_prompts", succeeds=False
    )
    assert "the model openings is ephemeral" in refusal
    openings.write_text(query)
    example.dbt("--warn-error", "build", "--select", "+letters")
    letters = {row["name"]: row["letter"] for row in example.rows("letters", "name")}
    reference = Reference(TWIN)
    for name, mood in (("Elizabeth", "happy"), ("Mr. Darcy", "silent")):
        row = {"prompt": f"{name} was {mood}, and"}
        expected = reference.generate(row, max_new_tokens=24)
        assert letters[name] == row["prompt"] + reference.decode(expected)
    assert letters["Mrs. Bennet"].startswith("Mrs. Bennet was vexed, and")

    # all of it is in the example's own schemas
    assert example.schemas() == {example.schema, f"{example.schema}_gpt2"}
    example.drop()


@pytest.mark.long
@torch.no_grad()
def test_copying(connection: Connection, tmp_path: Path) -> None:
    """Each head's drop is that of transformers without it."""
    load_checkpoint(TWIN, "gpt2_twin")
    example = copy_example("copying", tmp_path, connection)
    example.dbt("--warn-error", "build", "--select", "+copying_heads")
    rows = example.rows("copying_heads", "drop desc")
    settings = yaml.safe_load((example.folder / "dbt_project.yml").read_text())["vars"]
    reference = Reference(TWIN)
    token_ids = reference.encode(
        {"prompt": f"{settings['sentence']} {settings['name']}"}
    )

    def logprob(block: int = -1, head: int = -1) -> float:
        size = reference.config.n_embd // reference.config.n_head

        def without(_: Any, read: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            x = read[0].clone()
            x[..., head * size : (head + 1) * size] = 0
            return (x,)

        handles = [
            layer.attn.c_proj.register_forward_pre_hook(without)
            for n, layer in enumerate(reference.model.transformer.h)
            if n == block
        ]
        logits = reference.logits(token_ids)
        for handle in handles:
            handle.remove()
        return logits[-2].log_softmax(-1)[token_ids[-1]].item()

    assert len(rows) == 48
    assert rows[0]["head"] == "L11H2"
    for row in rows:
        expected = logprob(*map(int, row["head"][1:].split("H")))
        assert float(row["logprob"]) == pytest.approx(expected, abs=1e-3), row
        assert float(row["drop"]) == pytest.approx(logprob() - expected, abs=2e-3), row
    example.drop()


# --- Whole texts --------------------------------------------------------------


def seed(name: str) -> list[dict[str, str]]:
    """The rows of a file."""
    path = EXAMPLES / "helpdesk" / "seeds" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass
class Tickets:
    """The helpdesk's texts, and what sentence-transformers makes of them."""

    questions: list[str]
    ids: np.ndarray
    texts: dict[int, str]
    distances: np.ndarray  # [questions, tickets]
    pairs: np.ndarray  # [tickets, tickets]

    def nearest(self, question: int, k: int) -> list[tuple[int, float]]:
        """(ticket_id, distance) of the nearest to a question, by exact search."""
        row = self.distances[question]
        return [(int(self.ids[n]), row[n]) for n in np.argsort(row)[:k]]


@pytest.fixture(scope="module")
def tickets() -> Tickets:
    network = SentenceTransformer(str(fetch(MINILM)), device="cpu")
    texts = {
        int(row["ticket_id"]): f"{row['subject']}. {row['body']}"
        for row in seed("tickets")
    }
    questions = [row["question"] for row in seed("questions")]
    vectors = network.encode(list(texts.values())).astype("f8")
    asked = network.encode_query(questions).astype("f8")
    return Tickets(
        questions,
        np.array(list(texts)),
        texts,
        1 - asked @ vectors.T,
        1 - vectors @ vectors.T,
    )


@pytest.fixture(scope="module")
def helpdesk(
    connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    """Built as its README says."""
    load_checkpoint(Path(MINILM), "minilm")
    folder = tmp_path_factory.mktemp("helpdesk")
    example = copy_example("helpdesk", folder, connection)
    example.dbt("--warn-error", "build")
    yield example
    example.drop()


@pytest.mark.long
def test_search(helpdesk: Example, tickets: Tickets) -> None:
    """The same tickets in the same order as by exact search."""
    rows = helpdesk.rows("search", "question, rank")
    for n, question in enumerate(tickets.questions):
        found = [row for row in rows if row["question"] == question]
        expected = tickets.nearest(n, 5)
        assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
        assert [row["ticket_id"] for row in found] == [key for key, _ in expected]
        for row, (_, distance) in zip(found, expected, strict=True):
            assert abs(float(row["distance"]) - distance) < DISTANCE, row
    assert helpdesk.schemas() == {helpdesk.schema, f"{helpdesk.schema}_minilm"}


@pytest.mark.long
def test_duplicates(helpdesk: Example, tickets: Tickets) -> None:
    """All pairs within the distance, each once; the index gives the same ones."""
    rows = helpdesk.rows("duplicates", "distance, ticket_id")
    found = {(row["ticket_id"], row["duplicate_id"]): row for row in rows}
    near = np.argwhere(np.triu(tickets.pairs <= 0.2, k=1))
    expected = {
        (int(tickets.ids[a]), int(tickets.ids[b])): tickets.pairs[a, b] for a, b in near
    }
    assert len(found) == len(rows)
    assert found.keys() == expected.keys()
    assert len(found) > 5
    for pair, row in found.items():
        assert abs(float(row["distance"]) - expected[pair]) < DISTANCE, row

    # 60 rows are read faster without it
    compiled = helpdesk.folder / "target/compiled/helpdesk/models/duplicates.sql"
    query = compiled.read_text(encoding="utf-8")
    with helpdesk.connection.cursor() as cursor:
        cursor.execute("set enable_seqscan = off")
        try:
            cursor.execute(f"explain {query}")
            plan = "\n".join(line for (line,) in cursor)
            assert "minilm_embeddings_index" in plan, plan
            cursor.execute(f"select ticket_id, duplicate_id from ({query}) as pairs")
            assert set(cursor.fetchall()) == found.keys()
        finally:
            cursor.execute("reset enable_seqscan")


@pytest.mark.long
def test_reranked(helpdesk: Example, tickets: Tickets) -> None:
    """The nearest 20 of each question, by the sum of both ranks' reciprocals."""
    rows = helpdesk.rows("reranked", "question_id, rank")
    moved = 0
    for n, question in enumerate(tickets.questions):
        found = [row for row in rows if row["question"] == question]
        by_meaning = sorted(found, key=lambda row: row["rank_by_meaning"])
        assert [row["ticket_id"] for row in by_meaning] == [
            key for key, _ in tickets.nearest(n, 20)
        ]
        scores = [
            sum(
                1 / (60 + row[rank])
                for rank in ("rank_by_meaning", "rank_by_words")
                if row[rank] is not None
            )
            for row in found
        ]
        assert scores == sorted(scores, reverse=True)
        moved += found != by_meaning
    assert moved


@pytest.mark.long
def test_cross_encoder(helpdesk: Example, tickets: Tickets, tmp_path: Path) -> None:
    """A generated second network ranks as sentence-transformers' CrossEncoder."""
    checkpoint = save_encoder(
        tmp_path / "reranker",
        [*tickets.questions, *tickets.texts.values()],
        seed=11,
        network=BertForSequenceClassification,
        num_labels=1,
    )
    for verb in ("generate", "load"):
        helpdesk.command("dbt_nn", verb, str(checkpoint), "--name", "reranker")
    output = helpdesk.dbt(
        *("--warn-error", "build", "--select", "+reranked_by_pairs"),
        *("--vars", "cross_encoder: true"),
    )
    assert "no new texts" in output  # of the first network
    rows = helpdesk.rows("reranked_by_pairs", "question_id, rank")
    assert len(rows) == 20 * len(tickets.questions)
    expected = CrossEncoder(str(checkpoint), device="cpu").predict(
        [(row["question"], tickets.texts[row["ticket_id"]]) for row in rows]
    )
    assert np.std(expected) > 100 * SCORE
    for row, score in zip(rows, expected, strict=True):
        assert abs(row["score"] - score) < SCORE, row
    ranked = sorted(rows, key=lambda row: (row["question_id"], -row["score"]))
    assert rows == ranked
