"""A query's vector by a function, and the rows nearest to it, on a small network."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg2.extensions import connection as Connection
from sentence_transformers import SentenceTransformer

from conftest import Dbt
from dbt_nn import database
from runs import Encoder, Row, load_checkpoint
from small_encoders import SAMPLE, project_of, save_sentence_encoder

SCHEMA = "test_search"
NETWORK = "small"
TOLERANCE = 1e-5
# More rows than an HNSW index gives unless it is told: hnsw.ef_search is 40.
MANY = 60
QUERIES = ["a wife", "", "in possession of a good fortune " * 9, "ä 中 it's", "   "]
MODELS = {
    "found_text": "'small', text=\"'a wife'\", k=7",
    "found_many": f"'small', text=\"'a wife'\", k={MANY}",
    "found_all": "'small', text=\"'a wife'\", k=5000, exact=true",
    "found_l2": "'small', text=\"'a wife'\", k=7, distance='l2'",
    "found_ip": "'small', text=\"'a wife'\", k=7, distance='inner_product'",
    "found_queries": "'small', queries=source('mine', 'test_queries'), k=3, "
    "query_key='name', query_text='words', exact=true",
    "found_null": "'small', text='null'",
}
SOURCES = f"""
version: 2
sources:
- name: mine
  schema: {SCHEMA}
  tables:
  - name: test_queries
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return save_sentence_encoder(folder / NETWORK, 5)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of random words, so that no two are near each other by chance."""
    rng = np.random.default_rng(3)
    words = " ".join(SAMPLE[:2]).split()
    return [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(300)]


@pytest.fixture(scope="module")
def search(
    dbt: Dbt, connection: Connection, folder: Path, checkpoint: Path, texts: list[str]
) -> Iterator[Encoder]:
    """Texts that are embedded, and models that search them."""
    load_checkpoint(checkpoint, NETWORK)
    project = project_of(folder / "project", {NETWORK: checkpoint})
    for name, arguments in MODELS.items():
        (project / "models" / f"{name}.sql").write_text(
            f"{{{{ nearest({arguments}) }}}}"
        )
    (project / "models" / "sources.yml").write_text(SOURCES)
    made = Encoder(dbt, connection, SCHEMA, folder / "target", NETWORK, project)
    made.write_texts([{"id": n, "text": text} for n, text in enumerate(texts)])
    made.write_texts(
        [{"name": f"q{n}", "words": query} for n, query in enumerate(QUERIES)],
        "test_queries",
    )
    # a run, and the models in the same one; the planner would not take the index
    # for so few rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGOPTIONS", "-c enable_seqscan=off")
        made.run("--select", "small", *MODELS)
    yield made
    made.drop()
    made.execute(f"drop schema {NETWORK} cascade")


def rows_of(search: Encoder, model: str) -> list[Row]:
    return search.query(f"select * from {SCHEMA}.{model} order by rank")


def check(rows: list[Row], distances: np.ndarray, k: int) -> None:
    """Compare with all distances of a query; equal ones may be in any order."""
    order = np.sort(distances)[:k]
    assert [row["rank"] for row in rows] == [*range(1, len(order) + 1)]
    assert len({row["key"] for row in rows}) == len(order)
    for row, distance in zip(rows, order, strict=True):
        assert row["chunk"] == 0
        assert abs(distances[row["key"]] - distance) < TOLERANCE
        assert abs(row["distance"] - distances[row["key"]]) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "k", "distance"),
    [
        ("found_text", 7, lambda q, x: 1 - x @ q),
        ("found_many", MANY, lambda q, x: 1 - x @ q),
        ("found_all", 300, lambda q, x: 1 - x @ q),
        ("found_l2", 7, lambda q, x: np.linalg.norm(x - q, axis=1)),
        ("found_ip", 7, lambda q, x: -(x @ q)),
    ],
)
def test_nearest(
    search: Encoder,
    reference: SentenceTransformer,
    texts: list[str],
    model: str,
    k: int,
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    vectors = reference.encode_document(texts).astype("f8")
    query = reference.encode_query("a wife").astype("f8")
    check(rows_of(search, model), distance(query, vectors), k)


def test_nearest_to_queries(
    search: Encoder, reference: SentenceTransformer, texts: list[str]
) -> None:
    vectors = reference.encode_document(texts).astype("f8")
    rows = rows_of(search, "found_queries")
    assert {row["query_key"] for row in rows} == {f"q{n}" for n in range(len(QUERIES))}
    for n, query in enumerate(reference.encode_query(QUERIES).astype("f8")):
        of_query = [row for row in rows if row["query_key"] == f"q{n}"]
        check(of_query, 1 - vectors @ query, 3)


def test_nearest_to_nothing(search: Encoder) -> None:
    """NULL has no vector, and no distance."""
    assert all(row["distance"] is None for row in rows_of(search, "found_null"))


@pytest.fixture(scope="module")
def selects(search: Encoder) -> dict[str, str]:
    """The macro's own SELECTs, as dbt show runs them."""
    calls = {
        "seven": "k=7",
        "twenty": "k=20",
        "some": "k=12, where='mod(embeddings.key, 10) = 3'",
    }
    columns = ", ".join(
        f"{{{{ dbt_nn.literal(nearest('small', text=\"'a'\", {more})) }}}} as {name}"
        for name, more in calls.items()
    )
    done = search.dbt(
        "--quiet", "show", "--output", "json", "--inline", f"select {columns}",
        *search.arguments(), env=search.environment,
    )  # fmt: skip
    (row,) = json.loads(done.stdout)["show"]
    return row


@pytest.fixture
def without_scans(search: Encoder) -> Iterator[Encoder]:
    """What is done meanwhile is undone; the planner takes the index."""
    search.execute("begin; set local enable_seqscan = off; set local enable_sort = off")
    yield search
    search.execute("rollback")


def test_index_is_used(without_scans: Encoder, selects: dict[str, str]) -> None:
    plan = without_scans.query(f"explain {selects['seven']}")
    assert any("Index Scan using small_embeddings_index" in str(line) for line in plan)


def test_a_condition(
    without_scans: Encoder,
    selects: dict[str, str],
    reference: SentenceTransformer,
    texts: list[str],
) -> None:
    """As many rows as asked for, although few of the nearest 40 are of them."""
    rows = without_scans.query(f"select * from ({selects['some']}) as x order by rank")
    vectors = reference.encode_document(texts).astype("f8")
    distances = 1 - vectors @ reference.encode_query("a").astype("f8")
    distances[[n for n in range(len(texts)) if n % 10 != 3]] = 9
    check(rows, distances, 12)


def test_few_rows_in_a_list(without_scans: Encoder, selects: dict[str, str]) -> None:
    """As many rows as asked for, although the nearest list of IVFFlat has fewer."""
    without_scans.execute(
        f"drop index {SCHEMA}.small_embeddings_index; create index lists "
        f"on {SCHEMA}.small_embeddings using ivfflat (embedding vector_cosine_ops) "
        "with (lists = 50)"
    )
    plan = without_scans.query(f"explain {selects['twenty']}")
    assert any("Index Scan using lists" in str(line) for line in plan)
    rows = without_scans.query(selects["twenty"])
    assert [row["rank"] for row in rows] == [*range(1, 21)]
    distances = [row["distance"] for row in rows]
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'small'", "nearest: give either text or queries"),
        (
            "'small', text=\"'a'\", queries='b.c'",
            "nearest: give either text or queries",
        ),
        ("'small', text=\"'a'\", k=0", "nearest: k is 0, and must be a whole number"),
        ("'small', text=\"'a'\", k='3'", 'nearest: k is "3", and must be a whole'),
        (
            "'small', text=\"'a'\", distance='far'",
            'the distance "far": give cosine, l2, inner_product',
        ),
    ],
)
@pytest.mark.long
def test_nearest_that_is_refused(search: Encoder, arguments: str, message: str) -> None:
    done = search.dbt(
        "show", "--inline", f"{{{{ nearest({arguments}) }}}}",
        *search.arguments(), env=search.environment, check=False,
    )  # fmt: skip
    assert done.returncode
    assert message in " ".join(done.stdout.split())


# --- The function -------------------------------------------------------------


def embed(connection: Connection, *values: Any) -> list[float] | None:
    marks = ", ".join(["%s"] * len(values))
    with connection.cursor() as cursor:
        cursor.execute(f"select {SCHEMA}.small_embed({marks})::real[]", values)
        return cursor.fetchone()[0]


def test_embed(
    search: Encoder, connection: Connection, reference: SentenceTransformer
) -> None:
    """As encode_query() does: with the prompt that is named query."""
    expected = reference.encode_query(QUERIES)
    assert abs(expected - reference.encode(QUERIES)).max() > 0.01
    for query, vector in zip(QUERIES, expected, strict=True):
        assert abs(np.array(embed(connection, query)) - vector).max() < TOLERANCE
    assert embed(connection, None) is None
    for prompt in ("", "Group these by topic: "):
        vector = reference.encode("a wife", prompt=prompt)
        found = embed(connection, "a wife", prompt)
        assert abs(np.array(found) - vector).max() < TOLERANCE


def test_embed_leaves_the_texts_alone(search: Encoder, connection: Connection) -> None:
    """The next run finds nothing to do, and computes no layer."""
    rows = (
        f"select xmin::text from {SCHEMA}.small_embeddings order by key, chunk",
        f"select xmin::text from {SCHEMA}_small.small_pooling",
    )
    embed(connection, "another text")
    before = [search.query(each) for each in rows]
    done = search.run()
    assert "no new texts" in done.stdout
    assert [search.query(each) for each in rows] == before
    assert len(before[1]) == len(before[0])
    search.dbt("test", "--select", "small", *search.arguments(), env=search.environment)


def test_two_sessions_at_once(search: Encoder, reference: SentenceTransformer) -> None:
    """Each has layers of its own, and its own text's vector."""
    expected = reference.encode_query(["a wife", "a good fortune"])
    wrong = []

    def ask(text: str, vector: np.ndarray) -> None:
        with contextlib.closing(database.connect(autocommit=True)) as own:
            for _ in range(15):
                if abs(np.array(embed(own, text)) - vector).max() > TOLERANCE:
                    wrong.append(text)

    threads = [
        threading.Thread(target=ask, args=arguments)
        for arguments in zip(["a wife", "a good fortune"], expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_embed_leaves_a_run_alone(search: Encoder, connection: Connection) -> None:
    """A run in the session of a question computes the network's layers, not its own."""
    embed(connection, "a wife")
    found = "select to_regclass('pg_temp.small_tokens') as own"
    assert search.query(found)[0]["own"]
    forget = search.dbt(
        "--quiet", "compile", "--inline", "{{ dbt_nn.forget_own_relations('small') }}",
        *search.arguments(), env=search.environment,
    ).stdout  # fmt: skip
    search.execute(forget[forget.index("do $body$") :])
    assert search.query(found)[0]["own"] is None
    assert search.query(f"select from {SCHEMA}_small.small_pooling")
    assert embed(connection, "a wife")


def test_embed_beside_a_run(
    search: Encoder, connection: Connection, texts: list[str], folder: Path
) -> None:
    """It is answered, and the run is as if nobody had asked."""
    search.write_texts(
        [{"id": n, "text": f"{text} too"} for n, text in enumerate(texts)]
    )
    expected = embed(connection, "a wife")
    search.variables["batch_tokens"] = 1
    run = search.start(folder / "run.log")
    try:
        finished = "select from test_search.small_texts where finished_at is null"
        while len(search.query(finished)) not in range(1, len(texts)):
            assert run.poll() is None, (folder / "run.log").read_text()
            time.sleep(0.05)
        with contextlib.closing(database.connect(autocommit=True)) as other:
            assert embed(other, "a wife") == expected
        assert embed(connection, "a wife") == expected
        assert search.query(finished), "the run was done before"
        assert run.wait(300) == 0, (folder / "run.log").read_text()
    finally:
        del search.variables["batch_tokens"]
        if run.poll() is None:
            run.kill()
    assert search.query(finished) == []
