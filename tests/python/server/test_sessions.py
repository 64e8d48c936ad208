"""Sessions side by side: the same rows for any number, and none lost with a session."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from runs import Ddpm, Encoder, Gpt2, Row, Runs, load_checkpoint
from small_encoders import SAMPLE, project_of, save_sentence_encoder
from small_networks import IMAGE, TEXT, make_project, save_image, save_text

SCHEMA = "test_sessions"
ENCODER = "small"
# Some batches of 16 prompts at least, of all kinds, one of them bad.
KINDS: list[Row] = [
    {"max_new_tokens": 40, "temperature": 0.9},
    {"max_new_tokens": 3},
    {"max_new_tokens": 0, "pooling_mode": "mean"},
    {"choices": [" she", " he", " was not"]},
    {"max_new_tokens": 7, "stop_strings": ["e"], "prompt_logprobs": True},
]
WORDS = ["It", "is", "a", "truth", "universally", "acknowledged", "that", "a", "man"]
PROMPTS: list[Row] = [
    {"prompt_id": n, "prompt": " ".join(WORDS[: 1 + n % len(WORDS)]), "seed": n}
    | KINDS[n % len(KINDS)]
    for n in range(1, 71)
] + [{"prompt_id": 71, "prompt": None}]
RESULTS = {
    "completions": "prompt_id, completion, finish_reason, error",
    "completion_tokens": "prompt_id, position, token_id, logprob, rank",
    "choices": "prompt_id, choice, log_likelihood, probability, is_best",
    "scores": "prompt_id, logprob",
    "embeddings": "prompt_id, embedding::text",
}
# What the session that is killed runs, and no other does.
HELPER = "%set local max_parallel_workers_per_gather = 0%"


@pytest.fixture(scope="module")
def text(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gpt2]:
    folder = save_text(tmp_path_factory.mktemp("text"), seed=1)
    project = make_project(tmp_path_factory.mktemp("project"), folder)
    load_checkpoint(folder, TEXT)
    runs = Gpt2(dbt, connection, SCHEMA, project / "target", TEXT, project)
    yield runs
    runs.drop()
    runs.execute(f"drop schema {TEXT} cascade")


def results(runs: Runs, columns: dict[str, str]) -> dict[str, list[Row]]:
    """The rows of a network's models, in order."""
    return {
        model: runs.query(
            f"select {names} from {runs.schema}.{runs.network}_{model} "
            f"order by {', '.join(str(n + 1) for n in range(names.count(',') + 1))}"
        )
        for model, names in columns.items()
    }


def is_shared(runs: Runs, output: str, batches: str = "prompts") -> bool:
    """Whether other sessions made batches, each its own; they left nothing."""
    left = runs.query(
        "select relname from pg_class where relpersistence = 't' and relname like %s "
        "and relkind <> 'i'",
        [f"{runs.network}%"],
    )
    assert not left
    made = [int(n) for n in re.findall(r"_session_\d .*\[batches: (\d+) in", output)]
    [found] = runs.query(
        "select count(distinct batch) as n "
        f"from {runs.schema}.{runs.network}_{batches} where batch is not null"
    )
    # the owner makes one at least
    assert sum(made) < max(found["n"], 1), (made, found["n"])
    return bool(made)


def test_texts_are_the_same(text: Gpt2) -> None:
    """To the bit, for one session and three; a second run finds all of it done."""
    text.write_prompts(PROMPTS)
    alone = text.run("--threads", "1").stdout
    assert not is_shared(text, alone)
    expected = results(text, RESULTS)
    assert len(expected["completions"]) == len(PROMPTS)
    assert all(expected.values())

    made = text.dbt(
        "build", "--threads", "3", "--full-refresh", "--select", TEXT,
        *text.arguments(), env=text.environment,
    )  # fmt: skip
    assert is_shared(text, made.stdout), made.stdout
    assert results(text, RESULTS) == expected

    # nothing is left to do, and the layers hold a batch that can be looked at
    layer = f"{SCHEMA}_{TEXT}.{TEXT}_h_0_ln_1"
    rows = text.query(f"select xmin::text, * from {layer} order by 2, 3")
    assert rows
    again = text.run("--threads", "3").stdout
    assert not is_shared(text, again)
    assert text.query(f"select xmin::text, * from {layer} order by 2, 3") == rows
    assert results(text, RESULTS) == expected
    tested = text.dbt("test", "--select", TEXT, *text.arguments(), env=text.environment)
    assert "Completed successfully" in tested.stdout


def test_without_sessions(text: Gpt2) -> None:
    """Their models may be left out: the loop's owner makes all batches then."""
    text.write_prompts(PROMPTS[:40])
    made = text.run(
        "--threads", "2", "--full-refresh", "--exclude", "tag:sessions"
    ).stdout
    assert not is_shared(text, made)
    assert len(text.completions()) == 40


@pytest.mark.long
@pytest.mark.parametrize("victim", ["session", "owner"])
def test_killed(text: Gpt2, tmp_path: Path, victim: str) -> None:
    """Who is left makes the batch of a session that ends; the next run all others."""
    rows = [
        {"prompt_id": n, "prompt": WORDS[n % 9], "max_new_tokens": 60, "seed": n,
         "temperature": 1.0}
        for n in range(1, 65)
    ]  # fmt: skip
    text.write_prompts(rows)
    text.run("--threads", "1", "--full-refresh")
    columns = {"completion_tokens": RESULTS["completion_tokens"]}
    expected = results(text, columns)
    log = tmp_path / "log"
    running = text.start(log, "--threads", "2", "--full-refresh")
    word = "like" if victim == "session" else "not like"
    tokens = f"{SCHEMA}.{TEXT}_completion_tokens"
    stop = (
        "select pg_terminate_backend(pid) from pg_stat_activity "
        f"where query like '%%{TEXT}_completion_tokens_step%%' and query {word} %s "
        "and pid <> pg_backend_pid() and exists (select from "
        f"{tokens} having count(distinct sequence_id) > 20)"
    )
    deadline = time.monotonic() + 120
    while not tables_exist(text, tokens) or not text.query(stop, [HELPER]):
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert running.wait(120) == 1
    if victim == "session":
        assert len(text.completions()) == len(rows), log.read_text()
    else:
        text.run("--threads", "2")
    assert (
        results(text, {"completion_tokens": RESULTS["completion_tokens"]}) == expected
    )


def tables_exist(runs: Runs, name: str) -> bool:
    return runs.query("select to_regclass(%s) as found", [name])[0]["found"] is not None


def test_images_are_the_same(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_image(tmp_path_factory.mktemp("image"), seed=1)
    project = make_project(
        tmp_path_factory.mktemp("project"),
        save_text(tmp_path_factory.mktemp("text"), seed=1),
        folder,
    )
    load_checkpoint(folder, IMAGE)
    runs = Ddpm(dbt, connection, f"{SCHEMA}_image", project / "target", IMAGE, project)
    runs.write_requests(
        [
            {"image_id": n, "seed": n, "num_inference_steps": 3 + n % 2}
            for n in range(1, 6)
        ]
    )
    columns = {"samples": "image_id, step, y, x, activation::text"}
    runs.run("--threads", "1")
    expected = results(runs, columns)
    made = runs.dbt(
        "build", "--threads", "3", "--full-refresh", "--select", IMAGE,
        *runs.arguments(), env=runs.environment,
    )  # fmt: skip
    assert is_shared(runs, made.stdout, "requests"), made.stdout
    assert results(runs, columns) == expected
    # twice: what makes a sample's place unique is made anew with the table
    runs.run("--threads", "3", "--full-refresh")
    assert results(runs, columns) == expected
    runs.drop()
    runs.execute(f"drop schema {IMAGE} cascade")


def test_vectors_are_the_same(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_sentence_encoder(tmp_path_factory.mktemp("encoder") / "checkpoint")
    project = project_of(tmp_path_factory.mktemp("project"), {ENCODER: folder})
    load_checkpoint(folder, ENCODER)
    runs = Encoder(
        dbt, connection, f"{SCHEMA}_encoder", project / "target", ENCODER, project,
        {"batch_tokens": 200},
    )  # fmt: skip
    texts = [
        {"id": n, "text": " ".join(SAMPLE[: 1 + n % len(SAMPLE)])} for n in range(300)
    ]
    texts[77]["text"] = None
    runs.write_texts(texts)
    columns = {"embeddings": "key, chunk, embedding::text, error, tokens"}
    runs.run("--threads", "1")
    expected = results(runs, columns)
    assert len(expected["embeddings"]) == len(texts)
    made = runs.run("--threads", "3", "--full-refresh").stdout
    assert is_shared(runs, made, "texts"), made
    assert results(runs, columns) == expected
    runs.drop()
    runs.execute(f"drop schema {ENCODER} cascade")
