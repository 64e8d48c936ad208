"""GPT-2 in dbt against `transformers`: tokens, logits, text and counts."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from transformers import GPT2Config

from conftest import Dbt
from runs import PROJECT, TWIN, Gpt2, Row, copy_project, load_checkpoint
from text_reference import LOGIT_TOLERANCE, Reference, check_logits, save_network

# Tokens of the prompts: from one to as many as the issue asks for.
TEXT_LENGTHS = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 200]
RANDOM_LENGTHS = [1, 2, 4, 7, 11, 18, 29, 47, 76, 123]
NEW_TOKENS = 8
ODD_PROMPTS = [
    "",
    " ",
    "naïve café — “quoted” ﬁ 中文 🦋",
    "It is a truth<|endoftext|>universally acknowledged",
]


def austen_prompts(reference: Reference, lengths: list[int], seed: int) -> list[str]:
    """Passages of about so many tokens, that begin anywhere."""
    rng = random.Random(seed)
    with gzip.open(PROJECT / "data" / "austen.txt.gz", "rt", encoding="utf-8") as file:
        novels = file.read()
    prompts = []
    for length in lengths:
        start = rng.randrange(len(novels) - 2000)
        token_ids = reference.tokenizer(novels[start : start + 2000])["input_ids"]
        prompts.append(reference.tokenizer.decode(token_ids[:length]))
    return prompts


def random_prompts(lengths: list[int], vocabulary: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TWIN)


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[Row]:
    """Text and token ids of every length; the last ones are sampled."""
    texts = [*austen_prompts(reference, TEXT_LENGTHS, seed=1), *ODD_PROMPTS]
    sampled = austen_prompts(reference, [4, 16, 64], seed=2)
    rows: list[Row] = [{"prompt": text} for text in texts]
    rows += [
        {"prompt_token_ids": token_ids}
        for token_ids in random_prompts(
            RANDOM_LENGTHS, reference.config.vocab_size, seed=3
        )
    ]
    rows += [
        {"prompt": text, "temperature": 1.5, "top_k": 0, "seed": 5} for text in sampled
    ]
    # any token, so also bytes that are parts of characters, or of none
    rows += [
        {"prompt": "é", "temperature": 100, "top_k": 0, "max_new_tokens": 60, "seed": n}
        for n in range(3)
    ]
    return [
        {"prompt_id": 10 * n, "max_new_tokens": NEW_TOKENS, **row}
        for n, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gpt2]:
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(
        dbt,
        connection,
        "test_gpt2",
        tmp_path_factory.mktemp("target"),
        variables={"gpt2_all_logits": True},
    )
    yield runs
    runs.drop()


@pytest.fixture(scope="module")
def completions(gpt2: Gpt2, prompts: list[Row]) -> dict[int, Row]:
    return gpt2.complete(prompts)


def by_id(prompts: list[Row]) -> dict[int, Row]:
    return {row["prompt_id"]: row for row in prompts}


def test_prompts_are_what_the_issue_asks_for(
    reference: Reference, prompts: list[Row]
) -> None:
    lengths = [len(reference.encode(row)) for row in prompts if "seed" not in row]
    assert len(lengths) >= 20
    assert min(lengths) == 1
    assert 190 <= max(lengths) <= 200


def test_prompt_tokens(
    gpt2: Gpt2, reference: Reference, prompts: list[Row], completions: dict[int, Row]
) -> None:
    expected = {row["prompt_id"]: reference.encode(row) for row in prompts}
    assert gpt2.prompt_token_ids() == expected
    for prompt_id, row in by_id(prompts).items():
        assert completions[prompt_id]["prompt"] == row.get("prompt")
        assert completions[prompt_id]["prompt_tokens"] == len(expected[prompt_id])


def test_greedy_tokens(
    reference: Reference, prompts: list[Row], completions: dict[int, Row]
) -> None:
    for row in prompts:
        if "seed" not in row:
            expected = reference.generate(row, max_new_tokens=NEW_TOKENS)
            assert completions[row["prompt_id"]]["token_ids"] == expected, row


def test_all_logits(
    gpt2: Gpt2, reference: Reference, prompts: list[Row], completions: dict[int, Row]
) -> None:
    """At every position of the prompt and of what was generated."""
    for row in prompts:
        prompt_id = row["prompt_id"]
        token_ids = reference.encode(row) + completions[prompt_id]["token_ids"][:-1]
        expected = reference.logits(token_ids)
        check_logits(gpt2.logits(prompt_id), expected, f"prompt_id {prompt_id}")


def test_token_statistics(
    reference: Reference, prompts: list[Row], completions: dict[int, Row]
) -> None:
    """logprob, rank and the five likeliest tokens."""
    ranks = []
    for row in prompts:
        completion = completions[row["prompt_id"]]
        prompt = reference.encode(row)
        logits = reference.logits(prompt + completion["token_ids"][:-1])[
            len(prompt) - 1 :
        ]
        tolerance = 2 * LOGIT_TOLERANCE * float(logits.abs().max())
        for token, scores in zip(
            completion["tokens"], logits.log_softmax(-1), strict=True
        ):
            own = scores[token["token_id"]]
            assert token["logprob"] == pytest.approx(float(own), abs=tolerance)
            at_best = 1 + int((scores > own + tolerance).sum())
            at_worst = 1 + int((scores > own - tolerance).sum())
            assert at_best <= token["rank"] <= at_worst
            ranks.append(token["rank"])
            five = token["alternatives"]
            assert [a["logprob"] for a in five] == pytest.approx(
                scores.topk(5).values.tolist(), abs=tolerance
            )
            assert [a["logprob"] for a in five] == pytest.approx(
                scores[[a["token_id"] for a in five]].tolist(), abs=tolerance
            )
            assert len({a["token_id"] for a in five}) == 5
            for a in five:
                assert a["token"] == reference.tokenizer.decode([a["token_id"]])
    assert max(ranks) > 5, "no sampled token is far from the likeliest"


def test_text(reference: Reference, completions: dict[int, Row]) -> None:
    for completion in completions.values():
        expected = reference.decode(completion["token_ids"])
        assert completion["completion"] == expected
        assert "".join(t["piece"] for t in completion["tokens"]) == expected


def test_counts_and_finish_reason(
    reference: Reference, prompts: list[Row], completions: dict[int, Row]
) -> None:
    assert completions.keys() == by_id(prompts).keys()
    for prompt_id, row in by_id(prompts).items():
        completion = completions[prompt_id]
        token_ids = completion["token_ids"]
        assert completion["completion_tokens"] == len(token_ids)
        assert completion["seed"] == row.get("seed", 0)
        first = len(reference.encode(row))
        positions = [token["position"] for token in completion["tokens"]]
        assert positions == list(range(first, first + len(token_ids)))
        reasons = [token["finish_reason"] for token in completion["tokens"]]
        assert set(reasons[:-1]) <= {None}
        assert reasons[-1] == completion["finish_reason"]
        if token_ids[-1] in reference.end_ids:
            assert completion["finish_reason"] == "eos_token"
        else:
            assert completion["finish_reason"] == "length"
            assert len(token_ids) == row["max_new_tokens"]


def layer_differences(gpt2: Gpt2, layer: str, column: str, cast: str) -> Row:
    """How a layer differs from its copy in the schema `before`."""
    [found] = gpt2.query(f"""
        with now as (
            select sequence_id, position, {column}::{cast} as x
            from {gpt2.schema}_gpt2.{layer}
        ),
        before as (
            select sequence_id, position, {column}::{cast} as x
            from {gpt2.schema}.before_{layer}
        )
        select
            count(*) as places,
            count(*) filter (where now.x is null or before.x is null) as missing,
            max((
                select max(abs(a - b)) / max(abs(b))
                from unnest(now.x, before.x) as element (a, b)
            )) as difference
        from now full join before using (sequence_id, position)
    """)
    return found


LAYERS = {
    "gpt2_h_3_ln_1": ("activation", "real[]"),
    "gpt2_h_11_attn": ("activation", "real[]"),
    "gpt2_lm_head": ("logits", "real[]"),
}


def test_incremental_rows_equal_a_full_computation(
    gpt2: Gpt2, completions: dict[int, Row]
) -> None:
    """A layer that is run by itself, then all, over prompts and generated text.

    To the last bit: a place's numbers depend on nothing but the places before it.
    """
    for layer in LAYERS:
        gpt2.execute(
            f"create table {gpt2.schema}.before_{layer} as "
            f"select * from {gpt2.schema}_gpt2.{layer}"
        )
    [total] = gpt2.query(f"select count(*) as places from {gpt2.schema}.gpt2_tokens")
    selections = ["gpt2_h_3_ln_1", "path:models/gpt2/layers"]
    for selection, layers in zip(selections, [["gpt2_h_3_ln_1"], LAYERS], strict=True):
        gpt2.run("--full-refresh", "--select", selection)
        for layer in layers:
            found = layer_differences(gpt2, layer, *LAYERS[layer])
            assert found["places"] == total["places"], layer
            assert found["missing"] == 0, layer
            assert found["difference"] == 0, layer
    assert gpt2.completions() == completions


def test_again(gpt2: Gpt2, completions: dict[int, Row]) -> None:
    """A second run gives the same, to the last bit of each logprob."""
    gpt2.run()
    assert gpt2.completions() == completions


# --- Other shapes -------------------------------------------------------------

SHAPES = {
    "three_heads": {"n_embd": 30, "n_head": 3, "n_inner": 50},
    "one_head": {"n_embd": 20, "n_head": 1, "layer_norm_epsilon": 0.1},
    # a row of its weights takes two chunks, of mlp.c_proj three
    "wide": {"n_embd": 2100, "n_head": 3, "n_inner": 4000},
    "untied": {"n_embd": 16, "n_head": 2, "tie_word_embeddings": False},
    # more logits than a vector holds
    "many_tokens": {"n_embd": 12, "n_head": 2, "vocab_size": 20_000},
}


@pytest.fixture(scope="module")
def shallow(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gpt2]:
    """A network of two blocks, generated in a copy of the project."""
    project = copy_project(tmp_path_factory.mktemp("shallow"))
    config = project / "config.json"
    GPT2Config(n_layer=2).to_json_file(config, use_diff=False)
    subprocess.run(
        [sys.executable, project / "scripts" / "generate_network.py"]
        + [config, "--name", "shallow"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    runs = Gpt2(
        dbt,
        connection,
        "test_shallow",
        project / "target",
        network="shallow",
        project=project,
        variables={
            "shallow_all_logits": True,
            "shallow_checkpoint": "test_shallow_checkpoint",
            "shallow_options": {"max_new_tokens": NEW_TOKENS},
        },
    )
    yield runs
    runs.drop()
    runs.execute("drop schema if exists test_shallow_checkpoint cascade")


def check_network(gpt2: Gpt2, folder: Path, lengths: list[int], distinct: int) -> None:
    """Greedy tokens and all logits on random prompts of those lengths."""
    reference = Reference(folder, tokenizer=False)
    rows = [
        {"prompt_id": n, "prompt_token_ids": token_ids}
        for n, token_ids in enumerate(
            random_prompts(lengths, reference.config.vocab_size, seed=4)
        )
    ]
    completions = gpt2.complete(rows)
    generated = set()
    for row in rows:
        completion = completions[row["prompt_id"]]
        expected = reference.generate(row, max_new_tokens=NEW_TOKENS)
        assert completion["token_ids"] == expected
        assert completion["completion"] == ""
        assert completion["prompt_tokens"] == len(row["prompt_token_ids"])
        generated |= set(expected)
        token_ids = row["prompt_token_ids"] + expected[:-1]
        what = f"prompt of {completion['prompt_tokens']} tokens"
        check_logits(gpt2.logits(row["prompt_id"]), reference.logits(token_ids), what)
    assert len(generated) >= distinct, "the random network says the same for ever"


@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shallow: Gpt2, shape: str, tmp_path: Path) -> None:
    config = GPT2Config(
        **{"n_layer": 2, "vocab_size": 300, "n_positions": 40, **SHAPES[shape]},
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = save_network(tmp_path / shape, config, seed=6)
    load_checkpoint(folder, "test_shallow_checkpoint")
    check_network(shallow, folder, [1, 6, 25], distinct=4)


@pytest.mark.long
def test_full_size(gpt2: Gpt2, tmp_path: Path) -> None:
    """The published configuration, 124M, with random weights."""
    folder = save_network(tmp_path / "full", GPT2Config(), seed=7)
    load_checkpoint(folder, "test_gpt2_full")
    full = Gpt2(
        gpt2.dbt,
        gpt2.connection,
        "test_full",
        gpt2.target,
        variables={
            "gpt2_all_logits": True,
            "gpt2_checkpoint": "test_gpt2_full",
            "gpt2_options": {"max_new_tokens": NEW_TOKENS},
        },
    )
    try:
        check_network(full, folder, [1, 6, 40], distinct=6)
    finally:
        full.drop()
        full.execute("drop schema test_gpt2_full cascade")
