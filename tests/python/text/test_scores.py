"""gpt2_scores against transformers: log-likelihood and perplexity of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import psycopg2
import pytest

from conftest import Dbt
from runs import TWIN, Gpt2, Row, load_checkpoint
from text_reference import Reference

RELATIVE = 1e-4
CONTEXT = 256


def held_out_texts(reference: Reference) -> list[list[int]]:
    """The start of the text that the twin was not trained on, in whole contexts."""
    text = (TWIN / "heldout.txt").read_text(encoding="utf-8")
    token_ids = reference.encode({"prompt": text[:20_000]})
    return [token_ids[i * CONTEXT : (i + 1) * CONTEXT] for i in range(5)]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TWIN)


@pytest.fixture(scope="module")
def texts(reference: Reference) -> list[Row]:
    rows: list[Row] = [
        {"prompt": text}
        for text in ("It is a truth", "Él dijo: «¡año!» 🦋", "a", "", "zzzz\n\n\n!!")
    ]
    rows += [{"prompt_token_ids": ids} for ids in held_out_texts(reference)]
    return [{"prompt_id": n, **row} for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[Row],
) -> Iterator[Gpt2]:
    """One forward pass over the texts in two batches or more, no generation."""
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(dbt, connection, "test_scores", tmp_path_factory.mktemp("target"))
    runs.write_prompts(texts)
    runs.run(
        "--select",
        "+gpt2_scores",
        gpt2_options={"max_new_tokens": 0},
        batch_memory="100MB",
    )
    yield runs
    runs.drop()


def expected_logprobs(reference: Reference, token_ids: list[int]) -> list[float]:
    logprobs = reference.logits(token_ids).double().log_softmax(-1)
    return [logprobs[i, token_id].item() for i, token_id in enumerate(token_ids[1:])]


def test_each_token(gpt2: Gpt2, reference: Reference, texts: list[Row]) -> None:
    for row in texts:
        token_ids = reference.encode(row)
        ours = gpt2.query(
            "select position, token_id, logprob from test_scores.gpt2_token_scores "
            "where prompt_id = %s order by position",
            [row["prompt_id"]],
        )
        assert [found["token_id"] for found in ours] == token_ids[1:]
        assert [found["position"] for found in ours] == list(range(1, len(token_ids)))
        assert [found["logprob"] for found in ours] == pytest.approx(
            expected_logprobs(reference, token_ids), rel=RELATIVE, abs=RELATIVE
        )


def test_perplexity_of_held_out_text(
    gpt2: Gpt2, reference: Reference, texts: list[Row]
) -> None:
    """End to end: operators that are each right have hidden a wrong network."""
    scores = {
        row["prompt_id"]: row
        for row in gpt2.query("select * from test_scores.gpt2_scores")
    }
    assert sorted(scores) == [row["prompt_id"] for row in texts]
    for row in texts:
        expected = expected_logprobs(reference, reference.encode(row))
        found = scores[row["prompt_id"]]
        assert found["tokens"] == len(expected)
        if not expected:
            assert found["perplexity"] is found["logprob"] is None
            continue
        assert found["logprob"] == pytest.approx(sum(expected), rel=RELATIVE)
        perplexity = math.exp(-sum(expected) / len(expected))
        assert found["perplexity"] == pytest.approx(perplexity, rel=RELATIVE)
    long = [row["prompt_id"] for row in texts if "prompt_token_ids" in row]
    logprobs = sum(scores[n]["logprob"] for n in long)
    tokens = sum(scores[n]["tokens"] for n in long)
    # the twin's model card says 29 for all of the held-out text
    assert 15 < math.exp(-logprobs / tokens) < 60
