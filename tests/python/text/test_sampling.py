"""Sampling: the same distribution as `transformers`, and the same text each time."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from transformers import StoppingCriteriaList, StopStringCriteria

from conftest import Dbt, run_script
from dbt_nn import database
from macros import load_macros
from runs import TWIN, Gpt2, Row, load_checkpoint
from text_reference import Reference, draw, processors, sampling_distribution, uniform

# --- choose_token and penalized_logits by themselves --------------------------

DEFAULTS: Row = {
    "do_sample": True,
    "temperature": 1,
    "top_k": 50,
    "top_p": 1,
    "min_p": 0,
}
GRID: list[Row] = [
    {"top_k": 0},
    {},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1e-3, "top_k": 0},
    {"temperature": 100.0, "top_k": 0},
    {"temperature": 100.0, "top_k": 3, "top_p": 0.5},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 10_000},
    {"top_k": 0, "top_p": 0.9},
    {"top_k": 0, "top_p": 0.3},
    {"top_k": 0, "top_p": 1e-9},
    {"top_k": 7, "top_p": 0.8},
    {"top_k": 0, "min_p": 0.05},
    {"top_k": 0, "min_p": 1.0},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 0.5, "top_k": 0, "top_p": 0.99, "min_p": 0.2},
    # products of these are beyond float8
    {"top_k": 0, "min_p": 5e-324},
    {"top_k": 0, "top_p": 5e-324},
    {"temperature": 1e306, "top_k": 0, "top_p": 1e-320, "min_p": 1e-310},
]
DRAWS = 40
# A number so near a step of the CDF may fall on either side of it.
AT_A_STEP = 1e-9


def logits_samples() -> dict[str, torch.Tensor]:
    """Rows of logits, without ties: float32 as the network gives them."""
    generator = torch.Generator().manual_seed(8)

    def normal(n: int, scale: float) -> torch.Tensor:
        return torch.randn(n, generator=generator) * scale

    spread = torch.linspace(-1e4, 1e4, 100)
    return {
        "flat": normal(200, 0.01),
        "usual": normal(500, 3),
        "peaked": normal(200, 30),
        "far below zero": normal(100, 2) - 1e4,
        "far above zero": normal(100, 2) + 1e4,
        "extreme": spread[torch.randperm(100, generator=generator)],
        "two": torch.tensor([1.0, -1.0]),
        "one": torch.tensor([0.0]),
    }


@pytest.fixture(scope="module")
def macros() -> Any:
    """The sampler's macros, called outside dbt."""
    return load_macros("public", "text/choose_token.sql")


Case = tuple[
    Row, torch.Tensor, int, int, int
]  # options, logits, seed, prompt, position


def choose(connection: Connection, macros: Any, cases: list[Case]) -> list[int | None]:
    """The token that SQL draws for each case."""
    cursor = connection.cursor()
    cursor.execute("""
        create temporary table if not exists cases (
            i integer, logits real[], do_sample boolean, temperature float8,
            top_k integer, top_p float8, min_p float8, seed bigint,
            prompt_id integer, position integer
        )
    """)
    cursor.execute("truncate cases")
    execute_values(
        cursor,
        "insert into cases values %s",
        [
            (i, logits.tolist(), *(DEFAULTS | options).values(), *place)
            for i, (options, logits, *place) in enumerate(cases)
        ],
    )
    choice = macros.choose_token("cases.logits", "cases")
    cursor.execute(f"""
        select choice.token_id from cases
        left join lateral ({choice}) as choice on true
        order by cases.i
    """)
    return [row[0] for row in cursor]


@pytest.mark.parametrize("name", logits_samples())
def test_tokens_are_those_of_the_inverse_cdf(
    connection: Connection, macros: Any, name: str
) -> None:
    """For many numbers: that also pins which tokens are left to draw from."""
    logits = logits_samples()[name]
    rng = random.Random(name)
    cases: list[Case] = [
        (options, logits, rng.randint(-(2**62), 2**62), rng.randrange(99), position)
        for options in GRID
        for position in range(DRAWS)
    ]
    distributions = {
        json.dumps(options): sampling_distribution(logits, options) for options in GRID
    }
    found = choose(connection, macros, cases)
    for (options, _, *place), token_id in zip(cases, found, strict=True):
        probabilities = distributions[json.dumps(options)]
        expected, distance = draw(probabilities, uniform(*place))
        if distance > AT_A_STEP:
            assert token_id == expected, (options, place)
        else:
            assert probabilities[token_id] > 0, (options, place)


def test_ties(connection: Connection, macros: Any) -> None:
    """Equal logits are drawn equally often, and the smaller id comes first."""
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 2.0])
    tied = [1, 2, 4, 5]
    cases: list[Case] = [
        ({"top_k": 4}, logits, 1, 1, position) for position in range(DRAWS)
    ]
    for (*_, seed, prompt_id, position), token_id in zip(
        cases, choose(connection, macros, cases), strict=True
    ):
        assert token_id == tied[int(4 * uniform(seed, prompt_id, position))]
    greedy = {"do_sample": False, "temperature": 5, "top_k": 0}
    for row in (logits, torch.full((7,), -1e4), torch.full((7,), 1e4)):
        [found] = choose(connection, macros, [(greedy, row, 0, 0, 0)])
        assert found == int(row.argmax())


def test_greedy_is_the_largest(connection: Connection, macros: Any) -> None:
    """Whatever the other options say."""
    for logits in logits_samples().values():
        cases: list[Case] = [
            ({**options, "do_sample": False}, logits, 3, 4, 5) for options in GRID
        ]
        found = choose(connection, macros, cases)
        assert set(found) == {int(logits.argmax())}


def test_frequencies(connection: Connection, macros: Any) -> None:
    """Pearson's chi-square over positions, prompts and seeds alike."""
    logits = torch.randn(8, generator=torch.Generator().manual_seed(9))
    options = {"temperature": 1.4, "top_k": 6}
    probabilities = sampling_distribution(logits, options)
    n = 4_000
    for place in (lambda i: (7, 7, i), lambda i: (7, i, 7), lambda i: (i, 7, 7)):
        found = choose(
            connection, macros, [(options, logits, *place(i)) for i in range(n)]
        )
        counts = Counter(found)
        possible = [t for t in range(8) if probabilities[t] > 0]
        assert len(possible) == options["top_k"]
        assert set(counts) <= set(possible)
        expected = {t: float(probabilities[t]) * n for t in possible}
        statistic = sum((counts[t] - e) ** 2 / e for t, e in expected.items())
        freedom = torch.tensor((len(possible) - 1) / 2)
        p_value = 1 - torch.special.gammainc(freedom, torch.tensor(statistic / 2))
        assert p_value > 1e-3, (counts, expected)


def test_lowest_temperature(connection: Connection, macros: Any) -> None:
    """The limit, where transformers divides by 0."""
    for logits in logits_samples().values():
        cases: list[Case] = [
            ({"temperature": temperature, "top_k": 0}, logits, 3, 4, 5)
            for temperature in (5e-324, 1e-310, 1e-200)
        ]
        assert set(choose(connection, macros, cases)) == {int(logits.argmax())}


def test_highest_temperature(connection: Connection, macros: Any) -> None:
    """All tokens that are left are as likely, and come by falling logit."""
    logits = logits_samples()["usual"]
    order = torch.argsort(logits, descending=True)
    for top_k in (0, 7):
        cases: list[Case] = [
            ({"temperature": 1e306, "top_k": top_k}, logits, 3, 4, position)
            for position in range(DRAWS)
        ]
        for (*_, seed, prompt_id, position), token_id in zip(
            cases, choose(connection, macros, cases), strict=True
        ):
            n = (top_k or len(logits)) * uniform(seed, prompt_id, position)
            assert token_id == int(order[int(n)])


# Beyond float32 and beyond float8.
EXTREME_PENALTIES = [1e38, 1e300, 1.7e308, 1e-38, 1e-300, 5e-324]


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0, *EXTREME_PENALTIES])
def test_repetition_penalty(
    connection: Connection, macros: Any, penalty: float
) -> None:
    seen = [3, 5, 5, 0, 63]
    cursor = connection.cursor()
    cursor.execute(
        "create temporary table if not exists seen "
        "(sequence_id integer, position integer, token_id integer)"
    )
    cursor.execute("truncate seen")
    execute_values(
        cursor,
        "insert into seen values %s",
        # another sequence's tokens do not count
        [(1, i, t) for i, t in enumerate(seen)] + [(2, i, i + 6) for i in range(9)],
    )
    penalized = macros.penalized_logits("x", "seen")
    for name, logits in logits_samples().items():
        if len(logits) <= max(seen):
            continue
        cursor.execute(
            f"select {penalized} from (select 1 as sequence_id, %s::float8 as "
            "repetition_penalty, %s::real[] as logits) as x",
            (penalty, logits.tolist()),
        )
        [found] = cursor.fetchone()
        expected = processors({"repetition_penalty": penalty, "top_k": 0})(
            torch.tensor([seen]), logits.clone()[None]
        )[0]
        # the largest number is as good as infinity: its softmax is 0 or 1
        expected = expected.nan_to_num()  # keeps NaN's place, 0 / 0, as 0
        assert found == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-37), name


# --- Generation ---------------------------------------------------------------

PROMPTS = [
    "Emma Woodhouse, handsome, clever, and rich,",
    "It was",
    "“My dear,” said",
    "She had been a friend and companion such as few possessed",
]
SAMPLED: list[Row] = [
    {"temperature": 0.8, "seed": 11},
    {"do_sample": True, "seed": 12},
    {"temperature": 1.2, "top_k": 0, "top_p": 0.9, "seed": 13},
    {"top_k": 5, "seed": -14},
    {"temperature": 1.5, "top_k": 0, "min_p": 0.05, "seed": 15},
    {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.3, "seed": 16},
    {"do_sample": False, "repetition_penalty": 1.5, "temperature": 2.0},
    {"repetition_penalty": 0.7},
    {"top_p": 0.8, "repetition_penalty": 1.1, "seed": 2**62},
]
NEW_TOKENS = 20
# How near a step of the CDF the logits' own tolerance may decide.
AT_A_NETWORKS_STEP = 1e-3


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TWIN)


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gpt2]:
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(dbt, connection, "test_sampling", tmp_path_factory.mktemp("target"))
    yield runs
    # the server, and with it the connection, may have been stopped
    runs.connection = database.connect(autocommit=True)
    runs.drop()
    runs.connection.close()


@pytest.fixture(scope="module")
def sampled_rows() -> list[Row]:
    return [
        {
            "prompt_id": 100 + n,
            "prompt": PROMPTS[n % len(PROMPTS)],
            "max_new_tokens": NEW_TOKENS,
            **options,
        }
        for n, options in enumerate(SAMPLED)
    ]


def stop_rows(reference: Reference) -> list[Row]:
    """Stop strings made of what greedy decoding says."""
    prompt = PROMPTS[0]
    row = {"prompt": prompt}
    token_ids = reference.generate(row, max_new_tokens=NEW_TOKENS)
    pieces = [reference.tokenizer.decode([token_id]) for token_id in token_ids]
    text = "".join(pieces)
    before = len("".join(pieces[:6]))  # where the seventh token begins
    stops: list[Any] = [
        [text[before - 3 : before + 2]],  # over two tokens
        text[before - 6 : before + 8],  # over several, not in an array
        [text[before + 1 : before + 2]],  # within one token
        [prompt[-4:] + text[:2]],  # begins in the prompt
        [prompt[:8]],  # in the prompt only
        ["never said", text[before : before + 1], text[-3:]],  # the first to come
        [text * 2],  # longer than all that is said
        [f"{text[:-1]}\N{CYRILLIC SMALL LETTER ZHE}"],  # but for its end
        [],
        [text],  # at the last token of all
    ]
    return [
        {
            "prompt_id": 200 + n,
            "prompt": prompt,
            "max_new_tokens": NEW_TOKENS,
            "stop_strings": stop,
        }
        for n, stop in enumerate(stops)
    ]


def limit_rows(reference: Reference) -> list[Row]:
    """Nothing to say, and no room to say it in."""
    context = reference.config.n_positions
    rng = random.Random(10)
    token_ids = [rng.randrange(reference.config.vocab_size) for _ in range(context)]
    return [
        {"prompt_id": 300, "prompt": PROMPTS[1], "max_new_tokens": 0},
        {"prompt_id": 301, "prompt_token_ids": token_ids, "max_new_tokens": 5},
        {"prompt_id": 302, "prompt_token_ids": token_ids[:-4], "max_new_tokens": 9},
    ]


@pytest.fixture(scope="module")
def completions(
    gpt2: Gpt2, reference: Reference, sampled_rows: list[Row]
) -> dict[int, Row]:
    """One batch of everything."""
    return gpt2.complete([*sampled_rows, *stop_rows(reference), *limit_rows(reference)])


def sampling_options(row: Row) -> Row:
    """With do_sample as its documentation has it, and greedy as top_k = 1."""
    samples = row.get("do_sample", not row.keys().isdisjoint(DEFAULTS))
    if samples:
        return row
    return {"repetition_penalty": row.get("repetition_penalty", 1), "top_k": 1}


def test_samples_follow_transformers(
    reference: Reference, sampled_rows: list[Row], completions: dict[int, Row]
) -> None:
    """Each token is the one that its number picks, given those before it."""
    for row in sampled_rows:
        completion = completions[row["prompt_id"]]
        assert completion["seed"] == row.get("seed", 0)
        prompt = reference.encode(row)
        token_ids = prompt + completion["token_ids"]
        logits = reference.logits(token_ids[:-1])
        assert len(token_ids) > len(prompt)
        for position in range(len(prompt), len(token_ids)):
            probabilities = sampling_distribution(
                logits[position - 1], sampling_options(row), token_ids[:position]
            )
            u = uniform(row.get("seed", 0), row["prompt_id"], position)
            expected, distance = draw(probabilities, u)
            if distance > AT_A_NETWORKS_STEP:
                assert token_ids[position] == expected, (row, position)
            else:
                assert probabilities[token_ids[position]] > 0, (row, position)


def test_stop_strings(reference: Reference, completions: dict[int, Row]) -> None:
    """Ends where transformers' StopStringCriteria ends it."""
    reasons = []
    for row in stop_rows(reference):
        completion = completions[row["prompt_id"]]
        stops = row["stop_strings"]
        prompt = reference.encode(row)
        expected = reference.generate(
            row,
            max_new_tokens=NEW_TOKENS,
            **(
                {"stop_strings": stops, "tokenizer": reference.tokenizer}
                if stops
                else {}
            ),
        )
        assert completion["token_ids"] == expected, stops
        assert completion["completion"] == reference.decode(expected)
        stopped = bool(stops) and bool(
            StoppingCriteriaList([StopStringCriteria(reference.tokenizer, stops)])(
                torch.tensor([prompt + expected]), torch.zeros(1)
            )[0]
        )
        assert completion["finish_reason"] == ("stop_sequence" if stopped else "length")
        reasons.append((stopped, len(expected) == NEW_TOKENS))
    assert {(True, False), (True, True), (False, True)} == set(reasons)


def test_limits(reference: Reference, completions: dict[int, Row]) -> None:
    """max_new_tokens 0, and an end of the context in view."""
    context = reference.config.n_positions
    for row in limit_rows(reference):
        completion = completions[row["prompt_id"]]
        prompt = reference.encode(row)
        room = min(row["max_new_tokens"], context - len(prompt))
        expected = reference.generate(row, max_new_tokens=room) if room else []
        assert completion["token_ids"] == expected
        assert completion["completion"] == reference.decode(expected)
        assert completion["prompt_tokens"] == len(prompt)
        assert completion["completion_tokens"] == room
        assert completion["finish_reason"] == "length"


def texts(completions: dict[int, Row], rows: list[Row]) -> list[str]:
    return [completions[row["prompt_id"]]["completion"] for row in rows]


@pytest.mark.long
def test_the_same_text_after_a_restart_in_another_batch(
    gpt2: Gpt2, sampled_rows: list[Row], completions: dict[int, Row]
) -> None:
    """The table's other order gives the sequences other numbers, too."""
    for command in ("stop", "start"):
        done = run_script("server.py", command)
        assert done.returncode == 0, done.stdout + done.stderr
    gpt2.connection = database.connect(autocommit=True)
    others = [
        {"prompt_id": n, "prompt": text, "temperature": 1, "max_new_tokens": 30}
        for n, text in [(1, "No"), (999, "")]
    ]
    again = gpt2.complete([*reversed(sampled_rows), *others])
    assert texts(again, sampled_rows) == texts(completions, sampled_rows)


@pytest.mark.long
def test_other_seeds_other_texts(
    gpt2: Gpt2, sampled_rows: list[Row], completions: dict[int, Row]
) -> None:
    """For those that have another one, and that sample."""
    [first, *others] = sampled_rows
    rows = [first, *(row | {"seed": 77} for row in others)]
    again = gpt2.complete(rows)
    for row, new, old in zip(
        rows, texts(again, rows), texts(completions, rows), strict=True
    ):
        samples = sampling_options(row).get("top_k") != 1
        assert (new != old) == (samples and row is not first), row


# --- End of text --------------------------------------------------------------


@pytest.mark.long
def test_end_of_text(gpt2: Gpt2, reference: Reference, tmp_path: Path) -> None:
    """Its token ends a sequence, counts, and is not shown.

    Checkpoints whose end tokens are some that the twin says soon.
    """
    rows = [
        {"prompt_id": n, "prompt": prompt, "max_new_tokens": NEW_TOKENS}
        for n, prompt in enumerate(PROMPTS)
    ]
    said = [reference.generate(row, max_new_tokens=NEW_TOKENS) for row in rows]
    ends = sorted({said[0][3], said[1][5]})
    folder = tmp_path / "other_end"
    shutil.copytree(
        TWIN, folder, ignore=shutil.ignore_patterns("generation_config.json")
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    load_checkpoint(folder, "test_other_end")
    try:
        completions = gpt2.complete(rows, gpt2_checkpoint="test_other_end")
    finally:
        gpt2.execute("drop schema test_other_end cascade")
    other = Reference(folder)
    reasons = set()
    for row in rows:
        completion = completions[row["prompt_id"]]
        expected = other.generate(row, max_new_tokens=NEW_TOKENS)
        ended = expected[-1] in ends
        assert completion["token_ids"] == expected
        assert completion["completion_tokens"] == len(expected)
        shown = expected[:-1] if ended else expected
        assert completion["completion"] == reference.decode(shown)
        assert completion["finish_reason"] == ("eos_token" if ended else "length")
        reasons.add(completion["finish_reason"])
    assert "eos_token" in reasons
