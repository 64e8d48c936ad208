"""gpt2_choices against transformers: an answer from a fixed set, without generation.

The tokens of a choice are those of lm-evaluation-harness, whose rule `encode_pair`
repeats with the checkpoint's own tokenizer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from runs import TWIN, Gpt2, Row, load_checkpoint
from small_networks import POSITIONS, TEXT, make_project, save_text
from text_reference import Reference

SCHEMA = "test_choices"
TOLERANCE = 1e-4  # of a log-likelihood, float32 against float64
CONTEXT = {"gpt2": 256, TEXT: POSITIONS}

ROWS: list[Row] = [
    {"prompt": "She was very", "choices": [" happy", " sad", " much", " the"]},
    # of one prompt some of a token, some of more; some begin with all of another
    {
        "prompt": "It is a truth universally",
        "choices": [
            *(" acknowledged", " acknowledged, that a single man", " acknowledged,"),
            *(" unknown to me", " acknowledged, that a married woman"),
        ],
    },
    # the blank belongs to the choice's token
    {"prompt": "Answer: ", "choices": ["yes", "no", "Captain Wentworth"]},
    {"prompt": "Answer:\n\n\u00a0", "choices": ["yes", "no"]},
    # no blank before: the choice's first letters and the prompt's last are one word
    {"prompt": "Captain Went", "choices": ["worth was at home", "on", "ing"]},
    {"prompt": "un", "choices": ["til", "happy to"]},
    {"prompt": "", "choices": ["Emma", " Elizabeth was", "\n"]},
    {"prompt": " \n", "choices": ["Emma", "It is"]},
    {"prompt": "¿Qué? 🦋", "choices": [" sí", " no", "🦋", " año"]},
    {"prompt": "One choice", "choices": [" of several tokens"]},
    {
        "prompt": 'it\'s "quoted" {{ jinja }} \\',
        "choices": ["'; --", "$$", '"a"', "null"],
    },
    {"prompt_token_ids": [11, 12, 13], "choices": ["Emma", " Emma was there"]},
    {"prompt": "Scored as well", "choices": [" as that", "!"], "prompt_logprobs": True},
]
# Beside them some that are completed, of more and of fewer steps.
WRITTEN: list[Row] = [
    {"prompt": "Elizabeth was", "max_new_tokens": 9},
    {"prompt": "Mr. Darcy", "max_new_tokens": 2},
    {"prompt": "Scores only", "max_new_tokens": 0},
]


class Oracle(Reference):
    """A checkpoint in transformers, in float64."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = self.model.double()

    def encode_pair(self, row: Row, choice: str) -> tuple[list[int], list[int]]:
        """TemplateLM._encode_pair of lm-evaluation-harness."""
        if "prompt_token_ids" in row:
            return row["prompt_token_ids"], self.tokenizer(choice)["input_ids"]
        context, continuation = row["prompt"], choice
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces > 0:
            continuation = context[-n_spaces:] + continuation
            context = context[:-n_spaces]
        whole = self.tokenizer(context + continuation)["input_ids"]
        given = self.tokenizer(context)["input_ids"]
        return given or [self.config.bos_token_id], whole[len(given) :]

    def likelihoods(self, row: Row) -> list[tuple[int, float]]:
        """Of each choice how many tokens it has, and its log-likelihood."""
        found = []
        for choice in row["choices"]:
            given, ids = self.encode_pair(row, choice)
            logprobs = self.logits(given + ids).log_softmax(-1)
            assert logprobs.dtype == torch.float64
            places = range(len(given) - 1, len(given) + len(ids) - 1)
            terms = [
                logprobs[i, token].item() for i, token in zip(places, ids, strict=True)
            ]
            found.append((len(ids), sum(terms)))
        return found


def numbered(rows: list[Row], start: int = 1) -> list[Row]:
    return [{"prompt_id": n, **row} for n, row in enumerate(rows, start)]


def austen_rows(reference: Reference, n: int, context: int) -> list[Row]:
    """Texts of lengths around the ends of attention's blocks, with words of others."""
    words = (TWIN / "heldout.txt").read_text(encoding="utf-8")[:40_000].split()
    shuffle, rows = random.Random(20), []
    lengths = [29, 30, 31, 58, 59, 60, 61, context - 10]
    for i in range(n):
        start = shuffle.randrange(len(words) - 400)
        ids = reference.tokenizer(" ".join(words[start : start + 400]))["input_ids"]
        prompt = reference.tokenizer.decode(ids[: lengths[i % len(lengths)]])
        choices = set()
        for _ in range(shuffle.randrange(2, 6)):
            other = shuffle.randrange(len(words) - 10)
            n_words = shuffle.randrange(1, 4)
            choices.add(" " + " ".join(words[other : other + n_words]))
        rows.append({"prompt": prompt, "choices": sorted(choices)})
    return rows


def choices_of(runs: Gpt2) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in runs.query(
        f"select * from {runs.schema}.{runs.network}_choices "
        "order by prompt_id, choice_number"
    ):
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def check(runs: Gpt2, reference: Oracle, rows: list[Row]) -> None:
    """What the table says is what transformers says, for each choice."""
    found = choices_of(runs)
    completions = runs.completions()
    for row in rows:
        ours = found.pop(row["prompt_id"])
        expected = reference.likelihoods(row)
        assert [choice["choice"] for choice in ours] == row["choices"]
        assert [choice["choice_number"] for choice in ours] == [
            *range(1, len(row["choices"]) + 1)
        ]
        assert [choice["error"] for choice in ours] == [None] * len(ours)
        assert [choice["tokens"] for choice in ours] == [n for n, _ in expected]
        likelihoods = [x for _, x in expected]
        assert [choice["log_likelihood"] for choice in ours] == pytest.approx(
            likelihoods, abs=TOLERANCE
        ), row
        assert [choice["mean_log_likelihood"] for choice in ours] == pytest.approx(
            [x / n for n, x in expected], abs=TOLERANCE
        )
        probabilities = torch.tensor(likelihoods).double().softmax(0)
        assert [choice["probability"] for choice in ours] == pytest.approx(
            probabilities.tolist(), abs=TOLERANCE
        )
        assert math.fsum(choice["probability"] for choice in ours) == pytest.approx(1)
        best = row["choices"][int(probabilities.argmax())]
        assert [choice["choice"] for choice in ours if choice["is_best"]] == [best]
        completion = completions[row["prompt_id"]]
        assert completion["completion"] == best
        assert completion["finish_reason"] == "choice"
        assert completion["tokens"] == []
    assert found == {}


def check_data(runs: Gpt2) -> None:
    runs.dbt(
        *("test", "--select", runs.network), *runs.arguments(), env=runs.environment
    )


# --- The twin -----------------------------------------------------------------


def test_twin(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Beside prompts that are completed, in two batches or more."""
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(dbt, connection, SCHEMA, tmp_path_factory.mktemp("target"))
    reference = Oracle(TWIN)
    rows = numbered([*ROWS, *austen_rows(reference, 8, CONTEXT["gpt2"])])
    written = numbered(WRITTEN, 101)
    try:
        completions = runs.complete(rows + written, batch_prompts=17)
        check(runs, reference, rows)
        for row in written:
            n = row["max_new_tokens"]
            expected = reference.generate(row, max_new_tokens=n) if n else []
            assert completions[row["prompt_id"]]["token_ids"] == expected
        scored = runs.query(f"select prompt_id from {SCHEMA}.gpt2_scores order by 1")
        assert [row["prompt_id"] for row in scored] == [len(ROWS), 103]
        check_data(runs)
    finally:
        runs.drop()


# --- A small network of another name ------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(save_text(tmp_path_factory.mktemp("text"), seed=3))


@pytest.fixture(scope="module")
def project(
    reference: Oracle,
    tmp_path_factory: pytest.TempPathFactory,
    connection: Connection,
) -> Iterator[Path]:
    load_checkpoint(reference.folder, TEXT)
    yield make_project(tmp_path_factory.mktemp("project"), reference.folder)
    with connection.cursor() as cursor:
        cursor.execute(f"drop schema {TEXT} cascade")


@pytest.fixture
def small(project: Path, dbt: Dbt, connection: Connection) -> Iterator[Gpt2]:
    runs = Gpt2(dbt, connection, SCHEMA, project / "target", TEXT, project)
    yield runs
    runs.drop()


@pytest.mark.parametrize(
    "variables",
    [{"work_per_process": 1}, {"resident_memory": None}, {"kernels": "plain"}],
    ids=lambda variables: next(iter(variables)),
)
def test_ways(small: Gpt2, reference: Oracle, variables: Row) -> None:
    """However the layers are computed: by several processes, from tables, plainly."""
    rows = numbered([*ROWS, *austen_rows(reference, 3, CONTEXT[TEXT])])
    small.complete(rows, **variables)
    check(small, reference, rows)
    check_data(small)


def test_options_of_all(small: Gpt2, reference: Oracle) -> None:
    """The choices of all prompts; a prompt alone; no generation whatever is asked."""
    options = {"choices": [" yes", " no, never"], "max_new_tokens": 5, "top_k": 3}
    row = {"prompt_id": 1, "prompt": "Is it so?"}
    small.complete([row], **{f"{TEXT}_options": options})
    check(small, reference, [{**row, "choices": options["choices"]}])


def test_only_what_is_new(small: Gpt2, reference: Oracle) -> None:
    rows = numbered(ROWS[:5])
    small.complete(rows)
    earlier = {n: found[0]["finished_at"] for n, found in choices_of(small).items()}
    assert "nothing new to generate" in small.run().stdout
    rows[1] = {**rows[1], "choices": [" known to all", " false"]}
    rows[3] = {"prompt_id": 4, "prompt": "Completed now", "max_new_tokens": 2}
    small.complete(rows)
    check(small, reference, [row for row in rows if "choices" in row])
    now = {n: found[0]["finished_at"] for n, found in choices_of(small).items()}
    assert {n for n, time in now.items() if time != earlier[n]} == {2}
    assert len(small.completions()[4]["token_ids"]) == 2
    check_data(small)


@pytest.mark.parametrize("place", ["a choice", "the end"])
def test_stopped(small: Gpt2, reference: Oracle, place: str) -> None:
    """A run that was stopped goes on, and reads no choice again that is scored."""
    rows = numbered([*ROWS, *austen_rows(reference, 3, CONTEXT[TEXT])])
    small.complete(rows[:1])  # the tables are there
    small.write_prompts(rows)
    small.execute(f"""
        create function {SCHEMA}.stop() returns trigger language plpgsql as
        $$ begin raise exception 'stopped here'; end $$
    """)
    relation, event = {
        "a choice": (
            f"{SCHEMA}.{TEXT}_choice_tokens",
            "before insert on {} for each row when (new.choice_number = 3 "
            "and new.position > 9)",
        ),
        "the end": (f"{SCHEMA}.{TEXT}_prompts", "before update on {} for each row"),
    }[place]
    small.execute(
        f"create trigger stop {event.format(relation)} execute function {SCHEMA}.stop()"
    )
    assert "stopped here" in small.run(check=False).stdout
    small.execute(f"drop trigger stop on {relation}")
    scored = small.query(f"select *, xmin::text from {SCHEMA}.{TEXT}_choice_tokens")
    assert scored
    small.run()
    check(small, reference, rows)
    check_data(small)
    now = small.query(f"select *, xmin::text from {SCHEMA}.{TEXT}_choice_tokens")
    assert [row for row in scored if row not in now] == []


BAD = {
    "[]": "at least one",
    '"a"': "array of texts",
    '{"a": 1}': "array of texts",
    '["a", null]': "none empty",
    '["a", ""]': "none empty",
    '["a", 1]': "array of texts",
    '[["a"]]': "array of texts",
    '["a", "b", "a"]': "must differ",
}


def test_bad_choices(small: Gpt2, reference: Oracle) -> None:
    """Each has an error in its own row, and the others their answers."""
    good = {"prompt_id": 0, **ROWS[1]}
    select = " union all ".join(
        f"select {n}, 'She was', '{value}'::jsonb"
        for n, value in enumerate([*BAD, '["a", " and so on"]'], 1)
    )
    small.write_prompts([good])
    long = f"repeat(' the', {POSITIONS - 2})"
    small.execute(
        f"insert into {SCHEMA}.test_prompts {select} "
        f'union all select 90, {long}, \'[" a", " a man of fortune"]\' '
        f'union all select 91, {long}, \'[" a", " man"]\' '
        """union all select 92, 'Captain Went', '["on", "worth"]'"""
    )
    small.run()
    found = choices_of(small)
    for n, message in enumerate(BAD.values(), 1):
        [row] = found.pop(n)
        assert message in row["error"]
        assert row["choice"] is row["probability"] is row["is_best"] is None
        assert small.completions()[n]["error"] == row["error"]
    [row] = found.pop(92)
    assert '"worth" adds no token' in row["error"]
    [row] = found.pop(90)
    for word in (" a man of fortune", str(POSITIONS), "max_position_embeddings"):
        assert word in row["error"]
    text = " the" * (POSITIONS - 2)
    check_rows = [
        good,
        {
            "prompt_id": len(BAD) + 1,
            "prompt": "She was",
            "choices": ["a", " and so on"],
        },
        {"prompt_id": 91, "prompt": text, "choices": [" a", " man"]},
    ]
    small.execute(f"delete from {SCHEMA}.{TEXT}_choices where error is not null")
    check(small, reference, check_rows)
    options = {f"{TEXT}_options": {"choices": ["a", ""]}}
    done = small.run(check=False, **options)
    assert "the generation options: choices must be" in done.stdout
