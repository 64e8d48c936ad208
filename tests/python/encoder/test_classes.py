"""Scores of pairs and classes of texts, beside CrossEncoder and transformers' pipeline.

The networks are BERTs of two layers with one, three or four labels. All run on the
same models: a var names the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection
from sentence_transformers import CrossEncoder
from torch.nn import Identity
from transformers import pipeline

from conftest import Dbt
from runs import Encoder, Row, load_checkpoint
from small_encoders import LENGTH, SAMPLE, project_of, save_transformer

SCHEMA = "test_classes"
NETWORK = "labels"
# A probability; a logit of a few units.
TOLERANCE = 1e-5

A, B = SAMPLE[0], SAMPLE[1]
# Shorter and longer than the limit: the first cut, the second, both, evenly and not.
PAIRS = [
    ("a man", "a wife"),
    ("", ""),
    ("", A * 3),
    (A * 3, ""),
    ("what is a man", A * 3),
    (A * 3, "what is a man"),
    (A * 3, B * 3),
    (B * 3, A * 2),
    ("a b c d e f g h i j k l m n", "o p q r s t u v w x y z a b"),
    ("a b c d e f g h i j k l m n o", "o p q r s t u v w x y z a"),
    ("a b c d e f g h i j k l m n", "o p q r s t u v w x y z a b c"),
    ("a b c d e f g h i j k l m n o", "o p q r s t u v w x y z a b c"),
    ("🙂", "中文 it's"),
]
TEXTS = ["", "a man", A, B, A * 3, "🙂 中文", "x" * 150]
LABELS = {0: "no", 1: 'it\'s "so"', 2: "perhaps"}


def save_pair_network(folder: Path, seed: int, **options: Any) -> Path:
    """A network with one label, as CrossEncoder saves it."""
    plain = save_transformer(
        folder.with_name(f"{folder.name}-plain"), seed, is_classifier=True, num_labels=1
    )
    CrossEncoder(str(plain), **options).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, connection: Connection
) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("classes")
    made = {
        "score": save_pair_network(folder / "score", 1),
        "logit": save_pair_network(folder / "logit", 2, activation_fn=Identity()),
    }
    for seed, (name, problem) in enumerate(
        {
            "three": None,
            "several": "multi_label_classification",
            "numbers": "regression",
        }.items()
    ):
        made[name] = save_transformer(
            folder / name, seed, is_classifier=True, id2label=LABELS,
            label2id={label: n for n, label in LABELS.items()}, problem_type=problem,
        )  # fmt: skip
    for name, path in made.items():
        load_checkpoint(path, f"labels_{name}")
    yield made
    for name in made:
        connection.cursor().execute(f"drop schema labels_{name} cascade")


@pytest.fixture(scope="module")
def labels(
    dbt: Dbt,
    connection: Connection,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Encoder]:
    folder = tmp_path_factory.mktemp("labels")
    project = project_of(folder / "project", {NETWORK: checkpoints["score"]})
    made = Encoder(dbt, connection, SCHEMA, folder / "target", NETWORK, project)
    yield made
    made.drop()


def run(labels: Encoder, checkpoint: str, rows: list[Row], **more: Any) -> list[Row]:
    """The results of these rows, in their order."""
    labels.write_texts([{"id": n, **row} for n, row in enumerate(rows)])
    labels.run(labels_checkpoint=f"labels_{checkpoint}", **more)
    found = labels.results("classes")
    assert found.keys() == {(n, 0) for n in range(len(rows))}
    return [found[n, 0] for n in range(len(rows))]


@pytest.mark.parametrize("checkpoint", ["score", "logit"])
def test_scores_of_pairs(
    labels: Encoder, checkpoints: dict[str, Path], checkpoint: str
) -> None:
    """Those of CrossEncoder, longer pairs cut as it cuts them."""
    network = CrossEncoder(str(checkpoints[checkpoint]), device="cpu")
    rows = [{"text": text, "pair": pair} for text, pair in PAIRS]
    bad = [{"text": None, "pair": "a"}, {"text": "a", "pair": None}]
    found = run(labels, checkpoint, rows + bad, labels_text_pair="pair")
    *found, first, second = found
    assert (first["error"], second["error"]) == ("text is NULL", "pair is NULL")
    assert (first["score"], second["logits"]) == (None, None)
    expected = network.predict(PAIRS)
    assert expected.std() > 0.02
    for pair, row, score in zip(PAIRS, found, expected, strict=True):
        assert abs(row["score"] - score) < TOLERANCE, pair
        assert (row["label"], row["error"]) == (None, None)
        (ids,) = network.tokenizer([pair], truncation=False).input_ids
        assert row["tokens"] == min(len(ids), LENGTH)
        assert row["truncated"] == (len(ids) > LENGTH)
    labels.dbt(
        "test", "--select", NETWORK,
        *labels.arguments(
            labels_checkpoint=f"labels_{checkpoint}", labels_text_pair="pair"
        ),
        env=labels.environment,
    )  # fmt: skip


@pytest.mark.parametrize("checkpoint", ["three", "several", "numbers"])
def test_classes(
    labels: Encoder, checkpoints: dict[str, Path], checkpoint: str
) -> None:
    """Those of the pipeline for text classification."""
    classify = pipeline(
        "text-classification",
        str(checkpoints[checkpoint]),
        device="cpu",
        top_k=None,
        truncation=True,
    )
    found = run(labels, checkpoint, [{"text": text} for text in TEXTS])
    for text, row, expected in zip(TEXTS, found, classify(TEXTS), strict=True):
        assert row["label"] == expected[0]["label"]
        assert abs(row["score"] - expected[0]["score"]) < TOLERANCE, text
        assert row["probabilities"].keys() == {*LABELS.values()}
        for each in expected:
            difference = row["probabilities"][each["label"]] - each["score"]
            assert abs(difference) < TOLERANCE, (text, each)
        assert len(row["logits"]) == len(LABELS)


def test_options_of_pairs_that_are_refused(labels: Encoder) -> None:
    labels.write_texts([{"id": 1, "text": "a", "pair": "b"}])
    done = labels.run(
        labels_checkpoint="labels_score",
        labels_text_pair="pair",
        labels_options={"chunk_overlap": 2},
        check=False,
    )
    assert "pairs of texts are not cut in chunks" in " ".join(done.stdout.split())
