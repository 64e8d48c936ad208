"""A user's table of texts: its columns and keys, what changes in it, options, index.

The network is a BERT of two layers; what its vectors must be is sentence-transformers'.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psycopg2.extensions import connection as Connection
from sentence_transformers import SentenceTransformer

from conftest import Dbt
from runs import Encoder, Row, load_checkpoint
from small_encoders import (
    LENGTH,
    POSITIONS,
    PROMPTS,
    SAMPLE,
    project_of,
    save_sentence_encoder,
)

SCHEMA = "test_table"
NETWORK = "small"
TEXTS = f"{SCHEMA}.test_texts"
# Numbers of a vector of length 1, in float32.
TOLERANCE = 1e-5
# Types of text beside char(90): a domain, made by the test, among them.
KINDS = ["varchar(90)", "words", "citext"]
LONG = f"{SAMPLE[0]} {SAMPLE[1]} " * 2


class Table(Encoder):
    """Runs on <schema>.test_texts, with options from <schema>.test_options."""

    def options(self, **options: Any) -> None:
        """Of the next runs; they are no var, so that dbt need not parse anew."""
        self.execute(
            f"truncate {self.schema}.test_options;"
            f"insert into {self.schema}.test_options select o.* from "
            f"jsonb_populate_record(null::{self.schema}.test_options, %s) as o",
            [json.dumps(options)],
        )

    def embed(self, texts: dict[int, str | None], *flags: str, **more: Any) -> str:
        """Write the texts by their keys and run; what dbt printed."""
        self.write_texts([{"id": n, "text": text} for n, text in texts.items()])
        return self.run(*flags, **more).stdout

    def embed_nothing(self, *, run: bool = True) -> str:
        """Empty the table; run, if so."""
        self.execute(f"truncate {TEXTS}")
        return self.run().stdout if run else ""

    def fails(self, *flags: str, **more: Any) -> str:
        """Run, which must fail before any layer; what dbt printed, on one line."""
        done = self.run(*flags, check=False, **more)
        assert done.returncode in (1, 2), done.stdout
        assert "Traceback" not in done.stdout
        assert "_forward" not in done.stdout
        return " ".join(done.stdout.split())

    def versions(self) -> dict[tuple[Any, int], str]:
        """By key and chunk, what changes when a row is written."""
        rows = self.query(
            f"select key, chunk, xmin::text as x from {SCHEMA}.{NETWORK}_embeddings"
        )
        return {(row["key"], row["chunk"]): row["x"] for row in rows}

    def layer_version(self) -> Row:
        """The rows of a layer: how many, and what changes when it is computed."""
        (row,) = self.query(
            "select count(*) as n, min(xmin::text) as x "
            f"from {SCHEMA}_{NETWORK}.{NETWORK}_pooling"
        )
        return row

    def index(self) -> Row | None:
        rows = self.query(
            "select indexrelid as id, indexdef as made from pg_index "
            "inner join pg_indexes on indexrelid = "
            "(quote_ident(schemaname) || '.' || quote_ident(indexname))::regclass "
            f"where schemaname = '{SCHEMA}' and indexdef like '%%embedding vector%%'"
        )
        return rows[0] if rows else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return save_sentence_encoder(folder / NETWORK)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def table(
    dbt: Dbt, connection: Connection, folder: Path, checkpoint: Path
) -> Iterator[Table]:
    load_checkpoint(checkpoint, NETWORK)
    project = project_of(folder / "project", {NETWORK: checkpoint})
    (project / "models" / "my_texts.sql").write_text(
        f"select number as code, upper(line) as body from {SCHEMA}.test_lines"
    )
    made = Table(
        dbt, connection, SCHEMA, folder / "target", NETWORK, project,
        {f"{NETWORK}_options": f"{SCHEMA}.test_options"},
    )  # fmt: skip
    made.execute(
        f"create table {SCHEMA}.test_options (prompt text, prompt_name text, "
        "max_seq_length text, chunk_overlap integer)"
    )
    made.options()
    yield made
    made.drop()
    made.execute(f"drop schema {NETWORK} cascade")


@pytest.fixture(autouse=True)
def without_options(table: Table) -> Iterator[None]:
    yield
    table.options()


def words(n: int, length: int = 4) -> str:
    """A text of its own for each n."""
    return " ".join(f"{SAMPLE[0].split()[n * i % 23]} {n + i}" for i in range(length))


def assert_equal(
    found: dict[tuple[Any, int], Row],
    texts: dict[Any, str],
    reference: SentenceTransformer,
    **options: Any,
) -> None:
    """Compare the vectors of whole texts with sentence-transformers'."""
    expected = reference.encode([*texts.values()], **options)
    assert found.keys() == {(key, 0) for key in texts}
    for key, vector in zip(texts, expected, strict=True):
        row = found[key, 0]
        assert row["error"] is None
        difference = abs(np.array(row["vector"]) - vector).max()
        assert difference < TOLERANCE, (key, difference, texts[key])


# --- Rows ---------------------------------------------------------------------


def test_rows(table: Table, reference: SentenceTransformer) -> None:
    """NULL is an error of its row alone; all else that is text has a vector."""
    texts = {
        1: "a single man",
        2: None,
        3: "",
        4: "   ",
        5: "\t\n \u3000",
        6: LONG,
        7: "a single man",
        8: "🙂 中 \x01 {{ no }} %s ' \\ $$",
        9: "\u0301\u200b",
    }
    printed = table.embed(texts)
    assert "small: rows with an error: 1, for example key 2: text is NULL" in printed
    found = table.results()
    bad = found.pop((2, 0))
    assert bad["error"] == "text is NULL"
    assert (bad["vector"], bad["tokens"], bad["truncated"]) == (None, None, None)
    del texts[2]
    assert_equal(found, texts, reference)
    assert found[1, 0]["vector"] == found[7, 0]["vector"]
    for key, text in texts.items():
        row = found[key, 0]
        assert row["tokens"] == min(len(reference.tokenizer(text).input_ids), LENGTH)
        assert row["truncated"] == (key == 6)
        assert row["checkpoint"] == NETWORK
    # a NULL that gets a text
    printed = table.embed(texts | {2: "no more"})
    assert_equal(table.results(), texts | {2: "no more"}, reference)
    assert "rows with an error" not in printed


@pytest.mark.long
def test_only_nulls_and_no_rows(table: Table) -> None:
    table.embed({1: None, 2: None})
    assert {row["error"] for row in table.results().values()} == {"text is NULL"}
    table.embed({1: "one"})
    assert "no new texts" in table.embed_nothing()
    assert table.results() == {}
    assert table.query(f"select * from {SCHEMA}.{NETWORK}_texts") == []
    table.embed({1: "one"})
    assert len(table.results()) == 1


def test_keys_that_name_no_row(table: Table) -> None:
    """The run stops before anything of an earlier one is replaced."""
    table.embed({1: "one", 2: "two"})
    before = table.versions()
    for more, message in {
        "(2, 'two again'), (3, 'three')": "id 2 is there 2 times",
        "(null, 'nameless'), (3, 'three')": "id is NULL",
    }.items():
        table.embed_nothing(run=False)
        table.execute(f"insert into {TEXTS} values (1, 'changed'), (2, 'two'), {more}")
        printed = table.fails()
        assert f"the relation of texts {TEXTS}: {message}" in printed
        assert table.versions() == before


# --- Columns ------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "char(90)",
        *(pytest.param(k, marks=pytest.mark.long) for k in KINDS),
    ],
)
def test_types_of_text(table: Table, reference: SentenceTransformer, kind: str) -> None:
    if kind == "words":
        table.execute(
            f"drop domain if exists {SCHEMA}.words cascade;"
            f"create domain {SCHEMA}.words as varchar(90)"
        )
        kind = f"{SCHEMA}.words"
    elif kind == "citext":
        if not table.query("select from pg_available_extensions where name = 'citext'"):
            pytest.skip("this server has no citext")
        table.execute("create extension if not exists citext")
    texts = {1: "A single man ", 2: "", 3: " of Fortune"}
    table.write_texts([{"id": n, "text": text} for n, text in texts.items()])
    table.execute(f"alter table {TEXTS} alter text type {kind}")
    table.run("--full-refresh")
    assert_equal(table.results(), texts, reference)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("id integer, text bytea", "column text is of type bytea: give a text"),
        ("id integer, text integer", "column text is of type integer: give a text"),
        pytest.param(
            "id integer, text jsonb",
            "column text is of type jsonb: give a text",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "id integer, text text[]",
            "column text is of type text[]: give a text",
            marks=pytest.mark.long,
        ),
        (
            "id integer, body text",
            "has no column text: it has id, body. Name yours in the var small_text",
        ),
        (
            "number integer, text text",
            "has no column id: it has number, text. Name yours in the var small_key",
        ),
    ],
)
def test_columns_that_are_no_texts(table: Table, columns: str, message: str) -> None:
    table.execute(f"drop table if exists {TEXTS}; create table {TEXTS} ({columns})")
    assert message in table.fails()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        pytest.param("text", ["", "a'b", "Ä"], marks=pytest.mark.long),
        pytest.param("bigint", [-1, 0, 2**62], marks=pytest.mark.long),
        ("uuid", [f"0000000{n}-0000-4000-8000-000000000000" for n in range(3)]),
    ],
)
def test_types_of_keys(
    table: Table, reference: SentenceTransformer, kind: str, keys: list[Any]
) -> None:
    texts = {key: words(n) for n, key in enumerate(keys)}
    table.execute(
        f"drop table if exists {TEXTS}; create table {TEXTS} (id {kind}, text text)"
    )
    for key, text in texts.items():
        table.execute(f"insert into {TEXTS} values (%s, %s)", [key, text])
    table.run("--full-refresh")
    assert_equal(table.results(), texts, reference)
    table.run()  # compares keys with those of before
    (row,) = table.query(
        f"select distinct pg_typeof(key)::text as type from {SCHEMA}.small_embeddings"
    )
    assert row["type"] == kind
    if kind == "uuid":
        table.write_texts([{"id": 1, "text": "one"}])
        printed = table.fails()
        assert f"id of {TEXTS} is of type integer, and of earlier runs" in printed
        assert "uuid: choose another schema" in printed
        table.run("--full-refresh")
        assert len(table.results()) == 1


@pytest.mark.long
def test_relations(table: Table, reference: SentenceTransformer) -> None:
    """A view with a name that has to be quoted, then a dbt model."""
    table.execute(
        f"drop table if exists {SCHEMA}.test_lines cascade;"
        f"create table {SCHEMA}.test_lines (number integer, line text);"
        f"insert into {SCHEMA}.test_lines values (1, 'a man'), (2, 'a wife');"
        f'create view {SCHEMA}."Texts of ""mine""" as select number as "The Key", '
        f'initcap(line) as "the text" from {SCHEMA}.test_lines'
    )
    table.run(
        "--full-refresh",
        small_texts=f'{SCHEMA}."Texts of ""mine"""',
        small_key="The Key",
        small_text="the text",
    )
    assert_equal(table.results(), {1: "A Man", 2: "A Wife"}, reference)
    names = {"small_texts": "my_texts", "small_key": "code", "small_text": "body"}
    table.run("--select", "+small", **names)
    assert_equal(table.results(), {1: "A MAN", 2: "A WIFE"}, reference)


# --- What changes -------------------------------------------------------------


def test_only_what_changes_is_computed(
    table: Table, reference: SentenceTransformer
) -> None:
    texts = {n: words(n) for n in range(30)}
    table.embed(texts)
    first, layer = table.versions(), table.layer_version()
    assert layer["n"] == 30
    assert "no new texts" in table.embed(texts)
    assert table.versions() == first
    assert table.layer_version() == layer
    # 10 changed, 5 new, 5 withdrawn
    changed = {n: words(n) + " changed" for n in range(10, 20)}
    changed |= {n: words(n) for n in range(30, 35)}
    after = {n: text for n, text in texts.items() if n >= 5} | changed
    printed = table.embed(after)
    assert "30 of 30 texts" in printed
    assert_equal(table.results(), after, reference)
    second = table.versions()
    assert {key for key, _ in second if second[key, 0] != first.get((key, 0))} == {
        *changed
    }
    assert table.layer_version()["n"] == len(changed)
    batches = table.query(
        f"select count(distinct batch) as n from {SCHEMA}.small_texts"
    )
    assert batches[0]["n"] == 2
    # one goes, the others are in another order and have a column more
    layer = table.layer_version()
    rows = [{"id": n, "text": after[n], "more": "x"} for n in reversed(after)]
    table.write_texts([row for row in rows if row["id"] != 12])
    assert "no new texts" in table.run().stdout
    assert table.layer_version() == layer
    del after[12]
    assert_equal(table.results(), after, reference)
    assert {*table.versions().items()} < {*second.items()}


@pytest.mark.long
def test_a_text_that_comes_back(table: Table, reference: SentenceTransformer) -> None:
    texts = {n: words(n) for n in range(5)}
    for now in (texts, texts | {1: "another"}, texts, {2: texts[2]}, texts):
        table.embed(now)
        assert_equal(table.results(), now, reference)


@pytest.mark.long
def test_withdrawn_rows_stay(table: Table, reference: SentenceTransformer) -> None:
    texts = {n: words(n) for n in range(6)}
    table.embed(texts, "--full-refresh", small_withdrawn="keep")
    before = table.versions()
    table.embed({5: "changed", 6: "new"}, small_withdrawn="keep")
    assert_equal(table.results(), texts | {5: "changed", 6: "new"}, reference)
    after = table.versions()
    assert all(after[n, 0] == before[n, 0] for n in range(5))
    printed = table.fails(small_withdrawn="maybe")
    assert "the var small_withdrawn is \"maybe\": give 'delete' or 'keep'" in printed
    table.run()
    assert {key for key, _ in table.results()} == {5, 6}


@pytest.mark.long
def test_results_that_were_lost_are_made_again(
    table: Table, reference: SentenceTransformer
) -> None:
    texts = {n: words(n) for n in range(5)}
    table.embed(texts)
    table.execute(f"delete from {SCHEMA}.small_embeddings where key = 3")
    before = table.versions()
    table.run()
    assert_equal(table.results(), texts, reference)
    assert {*before.items()} < {*table.versions().items()}
    table.execute(f"drop table {SCHEMA}.small_embeddings")
    table.run()
    assert_equal(table.results(), texts, reference)
    assert table.index() is not None


@pytest.mark.long
def test_full_refresh_and_another_checkpoint(
    table: Table, reference: SentenceTransformer, folder: Path
) -> None:
    """Of the same layers, and vectors of another width."""
    texts = {n: words(n) for n in range(4)}
    table.embed(texts)
    before = table.versions()
    table.run("--full-refresh")
    assert_equal(table.results(), texts, reference)
    assert {*before.values()} & {*table.versions().values()} == set()
    wide = save_sentence_encoder(folder / "wide", 1, hidden_size=20)
    load_checkpoint(wide, "small_wide")
    other = SentenceTransformer(str(wide), device="cpu")
    table.run(small_checkpoint="small_wide")
    found = table.results()
    assert_equal(found, texts, other)
    assert {row["checkpoint"] for row in found.values()} == {"small_wide"}
    assert len(found[0, 0]["vector"]) == 20
    assert table.index() is not None
    (row,) = table.query(f"select {SCHEMA}.small_embed('a wife')::real[] as v")
    assert abs(np.array(row["v"]) - other.encode_query("a wife")).max() < TOLERANCE
    table.run()
    assert_equal(table.results(), texts, reference)
    table.execute("drop schema small_wide cascade")


# --- Options ------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_length": POSITIONS, "prompt_name": "cluster"},
        *(
            pytest.param(options, marks=pytest.mark.long)
            for options in (
                {"prompt": "query: the "},
                {"prompt": "un"},
                {"prompt_name": "cluster"},
                {"max_seq_length": 7},
            )
        ),
    ],
)
def test_options(
    table: Table, reference: SentenceTransformer, options: dict[str, Any]
) -> None:
    texts = {1: "a man", 2: "", 3: LONG, 4: words(4)}
    table.options(**options)
    table.embed(texts)
    prompts = {k: v for k, v in options.items() if k.startswith("prompt")}
    length = options.get("max_seq_length", LENGTH)
    reference.max_seq_length = length
    try:
        assert_equal(table.results(), texts, reference, **prompts)
    finally:
        reference.max_seq_length = LENGTH
    assert table.results()[3, 0]["tokens"] == length
    assert "no new texts" in table.run().stdout


@pytest.mark.long
def test_options_that_are_refused(table: Table) -> None:
    table.embed({1: "one"})
    before = table.versions()
    for options, message in [
        (
            {"prompt_name": "passage"},
            'has no prompt named "passage": it has "cluster", "document", "query"',
        ),
        (
            {"prompt": "a", "prompt_name": "query"},
            "give prompt or prompt_name, not both",
        ),
        (
            {"max_seq_length": 2},
            f"max_seq_length must be a whole number from 3 to {POSITIONS}",
        ),
        ({"max_seq_length": POSITIONS + 1}, f"from 3 to {POSITIONS}"),
        ({"max_seq_length": "many"}, "max_seq_length must be a whole number"),
        ({"chunk_overlap": -1}, "chunk_overlap must be a whole number, 0 or more"),
        ({"chunk_overlap": 30}, "chunk_overlap is 30, and must be less than the 30"),
        (
            {"chunk_overlap": 2, "max_seq_length": 8, "prompt_name": "cluster"},
            "tokens and chunk_overlap is 2: together they must be less than the 6",
        ),
    ]:
        table.options(**options)
        assert message in table.fails(), options
    table.options()
    printed = table.fails(small_options={"max_seq_lenght": 3})
    assert (
        'no option is named "max_seq_lenght": did you mean max_seq_length?' in printed
    )
    assert table.versions() == before


# --- Chunks -------------------------------------------------------------------


@torch.no_grad()
def vector_of(reference: SentenceTransformer, ids: list[int]) -> np.ndarray:
    """Of these tokens: the transformer's activations, their mean, of length 1."""
    network = reference[0].model
    (states,) = network(input_ids=torch.tensor([ids])).last_hidden_state
    mean = states.double().mean(dim=0)
    return (mean / mean.norm()).numpy()


def chunks_of(
    reference: SentenceTransformer, text: str, length: int, overlap: int, prompt: str
) -> list[list[int]]:
    """Windows over the text's tokens, each with the prompt's before them.

    A token that is the prompt's and the text's is the text's.
    """
    tokenizer = reference.tokenizer
    cls, *before, sep = tokenizer(prompt).input_ids
    _, *body, _ = tokenizer(prompt + text).input_ids
    while body[: len(before)] != before:
        before.pop()
    body = body[len(before) :]
    room = length - 2 - len(before)
    chunks = [body[:room]]
    start = 0
    while start + room < len(body):
        start += room - overlap
        chunks.append(body[start : start + room])
    return [[cls, *before, *chunk, sep] for chunk in chunks]


def assert_chunks(
    table: Table, texts: dict[int, str], reference: SentenceTransformer, **options: Any
) -> None:
    length = options.get("max_seq_length", LENGTH)
    prompt = options.get("prompt", PROMPTS.get(options.get("prompt_name", ""), ""))
    found = table.results()
    expected = {
        (key, n): ids
        for key, text in texts.items()
        for n, ids in enumerate(
            chunks_of(reference, text, length, options["chunk_overlap"], prompt)
        )
    }
    assert found.keys() == expected.keys()
    tokens = table.query(f"select key, chunk, token_ids from {SCHEMA}.small_texts")
    assert {(row["key"], row["chunk"]): row["token_ids"] for row in tokens} == expected
    for place, ids in expected.items():
        row = found[place]
        assert row["tokens"] == len(ids) <= length
        assert row["truncated"] is False
        difference = abs(np.array(row["vector"]) - vector_of(reference, ids)).max()
        assert difference < TOLERANCE, place


def of_length(reference: SentenceTransformer, n: int) -> str:
    """A text of n tokens without special ones, each a word of its own."""
    names = sorted(
        word
        for word in reference.tokenizer.get_vocab()
        if len(word) == 1 and word.isalpha() and word.isascii()
    )
    text = " ".join(names[i * i % len(names)] for i in range(n))
    assert len(reference.tokenizer(text).input_ids) == n + 2
    return text


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_overlap": 2, "max_seq_length": 20, "prompt_name": "cluster"},
        *(
            pytest.param(options, marks=pytest.mark.long)
            for options in (
                {"chunk_overlap": 0, "max_seq_length": 8},
                {"chunk_overlap": 5, "max_seq_length": 8},
                {"chunk_overlap": 7},
                {"chunk_overlap": 1, "max_seq_length": 9, "prompt": "it is a"},
            )
        ),
    ],
)
def test_chunks(
    table: Table, reference: SentenceTransformer, options: dict[str, Any]
) -> None:
    texts = {n: of_length(reference, n) for n in (0, 1, 5, 6, 7, 8, 12, 13, 60, 61)}
    table.options(**options)
    table.embed(texts)
    assert_chunks(table, texts, reference, **options)
    assert "no new texts" in table.run().stdout


def test_a_text_that_shrinks_and_grows(
    table: Table, reference: SentenceTransformer
) -> None:
    options = {"chunk_overlap": 2, "max_seq_length": 10}
    table.options(**options)
    texts = {n: of_length(reference, 10 * n) for n in range(1, 5)}
    for sizes in ({}, {4: 3, 2: 31}, {4: 30, 2: 1, 1: 0}):
        texts |= {key: of_length(reference, n) for key, n in sizes.items()}
        before = table.versions() if sizes else {}
        table.embed(texts)
        assert_chunks(table, texts, reference, **options)
        after = table.versions()
        assert all(after[at] == x for at, x in before.items() if at[0] not in sizes)
    # cut again
    table.options(max_seq_length=10)
    table.run()
    assert {chunk for _, chunk in table.results()} == {0}


# --- Index --------------------------------------------------------------------


def test_index(table: Table) -> None:
    texts = {n: words(n) for n in range(40)}
    table.embed(texts)
    first = table.index()
    assert first
    assert "USING hnsw (embedding vector_cosine_ops)" in first["made"]
    table.embed(texts | {3: "changed", 41: "new"})
    assert table.index() == first
    # the index has the new row, and is used
    table.execute("set enable_seqscan = off")
    nearest = (
        f"select key from {SCHEMA}.small_embeddings order by embedding <=> "
        f"(select embedding from {SCHEMA}.small_embeddings where key = 41) limit 3"
    )
    plan = table.query(f"explain {nearest}")
    assert any("Index Scan using small_embeddings_index" in str(row) for row in plan)
    assert table.query(nearest)[0]["key"] == 41
    table.execute("reset enable_seqscan")


@pytest.mark.long
def test_another_index(table: Table) -> None:
    table.embed({n: words(n) for n in range(40)})
    first = table.index()
    table.run(small_index={"type": "hnsw", "distance": "l2", "m": 8})
    other = table.index()
    assert other
    assert "hnsw (embedding vector_l2_ops) WITH (m='8')" in other["made"]
    table.run(small_index={"type": "ivfflat", "lists": 2})
    other = table.index()
    assert other
    assert "ivfflat (embedding vector_cosine_ops) WITH (lists='2')" in other["made"]
    table.run(small_index=None)
    assert table.index() is None
    table.run()
    assert table.index()["made"] == first["made"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"type": "btree"},
            'the var small_index is {"type": "btree"}: give {type: hnsw',
        ),
        ("hnsw", 'the var small_index is "hnsw": give {type: hnsw'),
        (
            {"type": "hnsw", "distance": "manhattan"},
            'the distance "manhattan": give cosine',
        ),
        ({"type": "hnsw", "m": "many"}, 'has m: "many", and of hnsw may have m, ef'),
        ({"type": "hnsw", "lists": 3}, "has lists: 3, and of hnsw may have m, ef"),
    ],
)
def test_index_that_is_refused(table: Table, index: Any, message: str) -> None:
    """Before anything is computed."""
    table.embed({1: "one"})
    before = table.versions()
    table.write_texts([{"id": 1, "text": "another"}])
    assert message in table.fails(small_index=index)
    assert table.versions() == before


# --- Stopped ------------------------------------------------------------------


@pytest.mark.long
def test_killed_run(table: Table, reference: SentenceTransformer, folder: Path) -> None:
    """What was committed stays, and is not computed again."""
    texts = {n: words(n, 5) for n in range(400)}
    table.write_texts([{"id": n, "text": text} for n, text in texts.items()])
    finished = "select key from test_table.small_texts where finished_at is not null"
    table.execute(
        f"drop table if exists {SCHEMA}.small_texts, {SCHEMA}.small_embeddings"
    )
    table.variables["batch_tokens"] = 60
    try:
        run = table.start(folder / "killed.log")
        deadline = time.monotonic() + 120
        while True:
            assert run.poll() is None, (folder / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
            (row,) = table.query(
                f"select to_regclass('{SCHEMA}.small_embeddings') as t"
            )
            if row["t"] and len(table.query(finished)) > 10:
                break
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        time.sleep(3)  # its session in the server ends
        done = {row["key"] for row in table.query(finished)}
        before = table.versions()
        assert 10 < len(done) < len(texts)
        assert done <= {key for key, _ in before}
        table.run()
    finally:
        del table.variables["batch_tokens"]
    assert_equal(table.results(), texts, reference)
    after = table.versions()
    assert all(after[key, 0] == before[key, 0] for key in done)


def test_data_tests(table: Table) -> None:
    table.embed({1: "one", 2: None, 3: "", 4: LONG})
    table.dbt("test", "--select", NETWORK, *table.arguments(), env=table.environment)
