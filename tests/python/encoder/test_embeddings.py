"""all-MiniLM-L6-v2, run on texts of every kind, beside sentence-transformers.

Its files come from PyPI where the Hub is not reached.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg2.extensions import connection as Connection
from sentence_transformers import SentenceTransformer

from conftest import Dbt
from dbt_nn.database import PROJECT
from dbt_nn.pypi import PACKAGES, fetch_package
from random_texts import EMOJI, random_texts
from runs import Encoder, Row, copy_bare_project, load_checkpoint
from word_pieces import austen, hard_texts

SCHEMA = "test_minilm"
NETWORK = "minilm"
LENGTH = 256
# Numbers of a vector of length 1: sums in float32 of both sides.
TOLERANCE = 1e-5
COSINE = 0.999999
# Distances that differ by less are a tie: what float32 makes of equal ones.
TIE = 1e-6

GERMAN = [
    "Die Rechnung für März wurde zweimal abgebucht.",
    "Übermorgen fährt der Zug nach Köln erst um 18:45 Uhr ab.",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "Können Sie mir bitte sagen, wo die Straßenbahn hält?",
    "Das Passwort läuft nach 90 Tagen ab; danach muß es geändert werden.",
]
CHINESE = [
    "我忘記了密碼，而郵件裡的連結不能用。",
    "请取消我的订阅，谢谢！",
    "凡是有财产的单身汉，必定需要娶位太太，这已经成了一条举世公认的真理。",
    "東京 2026年11月29日",
]
QUERIES = [
    "a proposal of marriage is refused",
    "Who is in want of a wife?",
    "",
    "wo ist die Straße",
    "密碼",
    "def main() -> int:",
    "'; drop table x; -- {{ no }} %s $1",
    "word " * 400,
]


def sentences() -> list[str]:
    """Of Austen's novels."""
    parts = re.split(r"(?<=[.!?;])\s+", austen())
    return [" ".join(part.split()) for part in parts if len(part) > 3]


def code() -> list[str]:
    """Lines of the project's own programs, by threes."""
    lines = []
    for path in sorted((PROJECT / "dbt_nn").glob("*.py"))[:8]:
        lines += path.read_text(encoding="utf-8").splitlines()
    return ["\n".join(lines[i : i + 3]) for i in range(0, len(lines), 3)]


def all_texts() -> dict[int, str]:
    """500 texts of 0 to 600 words, by their keys, which are no row numbers."""
    rng = random.Random(20)
    english = sentences()
    words = " ".join(english[:400]).split()
    texts = [*GERMAN, *CHINESE, *QUERIES, "   ", "\n", "a", "."]
    texts += ["".join(rng.choices(EMOJI, k=rng.randint(1, 8))) for _ in range(20)]
    texts += [
        " ".join(words[start : start + n])
        for n in (1, 2, 100, 180, 200, 210, 220, 230, 253, 254, 255, 300, 450, 600)
        for start in [rng.randrange(1000)]
    ]
    texts += rng.sample(code(), 60)
    texts += hard_texts(40, 7) + random_texts(40, 8)
    texts += [" ".join(rng.choices(GERMAN + CHINESE, k=2)) for _ in range(30)]
    texts += rng.sample(english, 480 - len(texts))
    texts += rng.sample(texts, 20)
    assert len(texts) == 500
    keys = rng.sample(range(10_000), len(texts))
    return dict(zip(keys, texts, strict=True))


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return fetch_package(PACKAGES["sentence-transformers/all-MiniLM-L6-v2"])


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def minilm(
    dbt: Dbt,
    connection: Connection,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Encoder]:
    """Runs of the models in models/minilm, without the other networks."""
    load_checkpoint(checkpoint, NETWORK)
    folder = tmp_path_factory.mktemp("minilm")
    project = copy_bare_project(folder / "project")
    shutil.copytree(PROJECT / "models" / NETWORK, project / "models" / NETWORK)
    made = Encoder(dbt, connection, SCHEMA, folder / "target", NETWORK, project)
    yield made
    made.drop()
    made.execute(f"drop schema {NETWORK} cascade")


@pytest.fixture(scope="module")
def texts(minilm: Encoder) -> dict[int, str]:
    """What is embedded when a test begins."""
    made = all_texts()
    minilm.write_texts([{"id": key, "text": text} for key, text in made.items()])
    minilm.run()
    return made


@pytest.fixture(scope="module")
def found(minilm: Encoder, texts: dict[int, str]) -> dict[tuple[int, int], Row]:
    return minilm.results()


def differences(found: list[Any], expected: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each vector: the largest difference, and the cosine."""
    vectors = np.array(found, dtype="f8")
    assert vectors.shape == expected.shape
    expected = expected.astype("f8")
    cosines = (vectors * expected).sum(1) / (
        np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    )
    return abs(vectors - expected).max(1), cosines


def assert_same(found: list[Any], expected: np.ndarray, texts: list[str]) -> None:
    largest, cosines = differences(found, expected)
    worst = int(largest.argmax())
    message = (
        f"text {worst}, {texts[worst][:60]!r}, differs by {largest[worst]:.1e}: "
        f"{found[worst][:5]} and {expected[worst][:5]}"
    )
    assert largest.max() < TOLERANCE, message
    assert cosines.min() > COSINE, (cosines.min(), texts[int(cosines.argmin())])


def test_vectors(
    reference: SentenceTransformer,
    texts: dict[int, str],
    found: dict[tuple[int, int], Row],
) -> None:
    assert found.keys() == {(key, 0) for key in texts}
    vectors = [found[key, 0]["vector"] for key in texts]
    assert_same(vectors, reference.encode([*texts.values()]), [*texts.values()])


def test_tokens(
    minilm: Encoder,
    reference: SentenceTransformer,
    texts: dict[int, str],
    found: dict[tuple[int, int], Row],
) -> None:
    """Their ids, how many there are, and which texts were cut."""
    cut = 0
    rows = minilm.query(f"select key, token_ids from {SCHEMA}.minilm_texts")
    token_ids = {row["key"]: row["token_ids"] for row in rows}
    for key, text in texts.items():
        row = found[key, 0]
        ids = reference.tokenizer(text, truncation=False).input_ids
        assert row["truncated"] == (len(ids) > LENGTH), text
        assert row["tokens"] == min(len(ids), LENGTH), text
        expected = ids if len(ids) <= LENGTH else [*ids[: LENGTH - 1], ids[-1]]
        assert token_ids[key] == expected, text
        assert (row["error"], row["checkpoint"]) == (None, NETWORK)
        cut += row["truncated"]
    assert cut > 4
    assert sum(row["tokens"] == 2 for row in found.values()) > 2


def test_same_text_same_vector(
    texts: dict[int, str], found: dict[tuple[int, int], Row]
) -> None:
    """Whatever its key, and whichever batch it is in."""
    by_text: dict[str, list[list[float]]] = {}
    for key, text in texts.items():
        by_text.setdefault(text, []).append(found[key, 0]["vector"])
    twice = [vectors for vectors in by_text.values() if len(vectors) > 1]
    assert len(twice) > 15
    for first, *others in twice:
        for other in others:
            assert abs(np.array(first) - np.array(other)).max() < 1e-6


def test_embed(
    minilm: Encoder, reference: SentenceTransformer, texts: dict[int, str]
) -> None:
    """A query's vector, by the function."""
    vectors = [
        minilm.query(f"select {SCHEMA}.minilm_embed(%s)::real[] as v", [query])[0]["v"]
        for query in QUERIES
    ]
    assert_same(vectors, reference.encode_query(QUERIES), QUERIES)


def test_data_tests(minilm: Encoder, texts: dict[int, str]) -> None:
    arguments = minilm.arguments()
    minilm.dbt("test", "--select", NETWORK, *arguments, env=minilm.environment)


def nearest(minilm: Encoder, table: str, **options: Any) -> list[Row]:
    """The rows that the macro gives for a table of queries, by dbt show."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    done = minilm.dbt(
        "--quiet", "show", "--limit", "-1", "--output", "json", "--inline",
        f"{{{{ nearest('minilm', queries='{table}', {arguments}) }}}}",
        *minilm.arguments(), env=minilm.environment,
    )  # fmt: skip
    return json.loads(done.stdout)["show"]


def assert_order(rows: list[Row], expected: np.ndarray, k: int) -> None:
    """Compare with all distances, [texts], but for the order of ties."""
    order = np.sort(expected)
    assert [row["rank"] for row in rows] == [*range(1, k + 1)]
    for row, distance in zip(rows, order[:k], strict=True):
        # what stands at this rank is as far as what the exact search has there
        assert abs(expected[row["key"]] - distance) < TIE
        assert abs(row["distance"] - expected[row["key"]]) < TOLERANCE
    assert len({row["key"] for row in rows}) == k


@pytest.mark.long
def test_nearest_paragraphs(minilm: Encoder, reference: SentenceTransformer) -> None:
    """50 queries over 2,000 paragraphs of Austen, short ones for the sake of time."""
    k = 10
    rng = random.Random(50)
    paragraphs = [
        " ".join(part.split())
        for part in re.split(r"\n\s*\n", austen())
        if 20 < len(part) < 200
    ]
    paragraphs = rng.sample(sorted({*paragraphs}), 2000)
    queries = rng.sample(sentences(), 42) + QUERIES
    minilm.write_texts([{"id": n, "text": text} for n, text in enumerate(paragraphs)])
    minilm.write_texts(
        [{"id": n, "text": text} for n, text in enumerate(queries)], "test_queries"
    )
    minilm.run()
    distances = (
        1
        - reference.similarity(
            reference.encode_query(queries).astype("f8"),
            reference.encode_document(paragraphs).astype("f8"),
        ).numpy()
    )
    rows = nearest(minilm, f"{SCHEMA}.test_queries", k=k, exact=True)
    for n in range(len(queries)):
        of_query = [row for row in rows if row["query_key"] == n]
        assert_order(of_query, distances[n], k)
    # the index is an approximation: pgvector's defaults find most of them
    rows = nearest(minilm, f"{SCHEMA}.test_queries", k=k)
    hits = sum(
        distances[row["query_key"]][row["key"]]
        < np.sort(distances[row["query_key"]])[k - 1] + TIE
        for row in rows
    )
    assert hits > 0.9 * k * len(queries)
