"""Bad input gets a clear error, nothing of an earlier run is lost, text is text."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor
from transformers import GPT2Config

from conftest import Dbt, run_script
from dbt_nn import database, embedded
from runs import TWIN, Gpt2, Row, copy_project, load_checkpoint
from text_reference import Reference, save_network

SCHEMA = "test_bad_input"
LITERAL_TEXTS = [
    "it's \"quoted\" ''twice'' “and curly”",
    r"C:\new\x41 \\ \' \0 E'\n'",
    "{{ target.schema }} {% do x %} {# note #} {{ 1 / 0 }}",
    "$$ $body$ $forward$ $step$ $1 ${HOME} `id` $(id)",
    "%s %(name)s %% %d 100%",
    f"'; drop table {SCHEMA}.gpt2_completions; -- /* */",
    "a','b'::text); select pg_sleep(9); --",
    "\ta line\nand another \r\n  \n",
    "null",
    "None",
    "1e5",
    "true",
    "2024-01-01",
    '{"prompt": [1, 2]}',
    "<b>&amp;</b> \x01\x7f\u200b",
]
# What a seed keeps: dbt reads the word null as NULL, and any end of line as \n.
SEED_TEXTS = [text.replace("\r\n", "\n") for text in LITERAL_TEXTS if text != "null"]
DEFAULT_NEW_TOKENS = 3


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TWIN)


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gpt2]:
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(
        dbt,
        connection,
        SCHEMA,
        tmp_path_factory.mktemp("target"),
        variables={
            # null is as if it was not there, so this is greedy
            "gpt2_options": {
                "max_new_tokens": DEFAULT_NEW_TOKENS,
                "temperature": None,
                "seed": 4,
            }
        },
    )
    yield runs
    # the server, and with it the connection, was stopped
    with contextlib.closing(database.connect(autocommit=True)) as opened:
        runs.connection = opened
        runs.drop()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The literal texts, and one that has options of its own."""
    rows: list[Row] = [
        {"prompt_id": n, "prompt": text} for n, text in enumerate(LITERAL_TEXTS)
    ]
    own = {"max_new_tokens": 7, "seed": 5, "stop_strings": ["'; never {{ said }}"]}
    return [*rows, {"prompt_id": 100, "prompt": "Mr. Knightley", **own}]


@pytest.fixture(scope="module")
def completions(gpt2: Gpt2, rows: list[Row]) -> dict[int, Row]:
    """An earlier run, which no bad input may touch."""
    return gpt2.complete(rows)


# --- Text is text -------------------------------------------------------------


def test_prompts_of_a_table_are_literal(
    reference: Reference, gpt2: Gpt2, rows: list[Row], completions: dict[int, Row]
) -> None:
    token_ids = gpt2.prompt_token_ids()
    for row in rows:
        prompt_id = row["prompt_id"]
        assert completions[prompt_id]["prompt"] == row["prompt"]
        assert token_ids[prompt_id] == reference.encode(row)


def test_a_row_overrides_the_var(
    reference: Reference, rows: list[Row], completions: dict[int, Row]
) -> None:
    """NULL in a column does not."""
    for row in rows:
        new_tokens = row.get("max_new_tokens", DEFAULT_NEW_TOKENS)
        completion = completions[row["prompt_id"]]
        expected = reference.generate(row, max_new_tokens=new_tokens)
        assert completion["token_ids"] == expected
        assert completion["seed"] == row.get("seed", 4)


def test_prompts_of_a_seed_are_literal(
    dbt: Dbt, gpt2: Gpt2, reference: Reference, tmp_path: Path
) -> None:
    project = copy_project(tmp_path)
    with (project / "seeds" / "dbt_nn_prompts.csv").open(
        "w", newline="", encoding="utf-8"
    ) as f:
        csv.writer(f, lineterminator="\n").writerows(
            [("prompt_id", "prompt"), *enumerate(SEED_TEXTS)]
        )
    environment = {
        "DBT_NN_SCHEMA": "test_literal_seed",
        "DBT_TARGET_PATH": str(project / "target"),
    }
    where = ["--project-dir", str(project)]
    try:
        dbt("seed", *where, env=environment)
        dbt("run", *where, "--select", "gpt2_prompts", env=environment)
        found = gpt2.query("""
            select prompt, prompt_token_ids
            from test_literal_seed.gpt2_prompts
            order by prompt_id
        """)
    finally:
        gpt2.execute("drop schema if exists test_literal_seed cascade")
    assert [row["prompt"] for row in found] == SEED_TEXTS
    for row in found:
        assert row["prompt_token_ids"] == reference.encode({"prompt": row["prompt"]})


def test_prompt_of_the_command_line_is_literal(
    gpt2: Gpt2, reference: Reference
) -> None:
    prompt = " ".join(LITERAL_TEXTS[:8])
    environment = {**os.environ, "DBT_NN_SCHEMA": "test_literal_command"}
    try:
        done = run_script(
            "complete.py", prompt, "max_new_tokens=2", "stop_strings=[\"{{ 'x' }}\"]",
            env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        [found] = gpt2.query("""
            select prompt, completion, prompt_tokens, completion_tokens
            from test_literal_command_command_line.gpt2_completions
        """)
    finally:
        gpt2.execute("drop schema if exists test_literal_command_command_line cascade")
    row = {"prompt": prompt}
    expected = reference.generate(row, max_new_tokens=2)
    assert found["prompt"] == prompt
    assert found["prompt_tokens"] == len(reference.encode(row))
    assert found["completion"] == reference.decode(expected)
    # a terminal's universal newlines
    assert f"{prompt}|{found['completion']}\n".replace("\r\n", "\n") == done.stdout


# --- Bad rows -----------------------------------------------------------------

# A row of prompts, and what its error has to say.
BAD_ROWS: list[tuple[str, list[str]]] = [
    ("7 as prompt_id, null::text as prompt", ["prompt"]),
    ("7 as prompt_id, '5'::jsonb as prompt_token_ids", ["prompt_token_ids", "5"]),
    (
        "7 as prompt_id, 'a' as prompt, '\"5\"'::jsonb as prompt_token_ids",
        ["prompt_token_ids", '"5"'],
    ),
    *(
        (f"7 as prompt_id, 'a' as prompt, {value} as {option}", [option])
        for option, values in {
            "temperature": ["0", "-1", "'hot'", "'NaN'::float8", "'inf'::float8", "''"],
            "top_p": ["0", "1.5", "-0.1", "'NaN'::float8", "'most'"],
            "top_k": ["-1", "2.5", "'all'", "99999999999"],
            "min_p": ["-0.1", "1.01", "'some'"],
            "repetition_penalty": ["0", "-2", "'inf'::float8"],
            "seed": ["1.5", "'lucky'", "1e30"],
            "max_new_tokens": ["-1", "0.5", "'many'"],
            "do_sample": ["'perhaps'", "2"],
            "stop_strings": [
                "''", "array['.', '']", "'[\".\", null]'::jsonb", "3",
                "'{\"a\": 1}'::jsonb",
            ],
        }.items()
        for value in values
    ),
    *(
        (f"7 as prompt_id, {value} as prompt_token_ids", message)
        for value, message in {
            "array[1, 99999]": ["99999", "vocabulary"],
            "array[1, -1]": ["-1", "vocabulary"],
            "array[1, null, 2]": ["token"],
            "array['1', 'x']": ["token"],
            "array[1.5]": ["token"],
            "array[5000000000]": ["5000000000"],
            "array_fill(1, array[300])": ["300", "256", "max_position_embeddings"],
        }.items()
    ),
    (
        "7 as prompt_id, repeat('word ', 300) as prompt",
        ["256", "max_position_embeddings", "tokens"],
    ),
]  # fmt: skip

# A relation that is bad as a whole: the run stops.
BAD_RELATIONS: list[tuple[str, list[str]]] = [
    ("null::integer as prompt_id, 'a' as prompt", ["prompt_id is NULL"]),
    (
        "8 as prompt_id, 'a' as prompt union all select 8, 'b'",
        ["prompt_id 8", "2 times"],
    ),
    ("7 as prompt_id, 'a' as promt", ["prompt", "prompt_token_ids"]),
    *(
        (f"7 as prompt_id, {value} as prompt", ["prompt", "type", kind, "text"])
        for value, kind in {
            r"'\x41'::bytea": "bytea",
            "5": "integer",
            "'{\"a\": 1}'::jsonb": "jsonb",
            "array['a']": "text[]",
            "current_date": "date",
        }.items()
    ),
    *(
        (
            f"7 as prompt_id, 'a'::text as prompt, {value} as prompt_token_ids",
            ["prompt_token_ids", "type", kind, "array"],
        )
        for value, kind in {
            "'{1, 2}'::text": "text",
            "5": "integer",
            "'[1, 2]'::vector": "vector",
        }.items()
    ),
    # a letter left out, added, changed, or two swapped; capitals, no underscore
    *(
        (
            f"7 as prompt_id, 'a'::text as prompt, 1 as \"{column}\"",
            [f"column {column}", f"mean {option}?", "another name"],
        )
        for column, option in {
            "temprature": "temperature",
            "tempertaure": "temperature",
            "Temperature": "temperature",
            "topk": "top_k",
            "tok_k": "top_k",
            "top-p": "top_p",
            "maxnewtokens": "max_new_tokens",
            "max_new_token": "max_new_tokens",
            "SEED": "seed",
            "repitition_penalty": "repetition_penalty",
            "stop_string": "stop_strings",
            "promt_token_ids": "prompt_token_ids",
        }.items()
    ),
]
OTHER_COLUMNS = [
    "seen", "speed", "seeds", "error", "temp", "topic", "step", "is_sample", "samples",
    "prompts", "prompt2", "prompt_tokens", "tokens", "sequence", "requests",
    "min", "max", "top", "top_5", "fields",
    "sequence_id", "options", "row_type", "batch", "request", "stop", "max_tokens",
]  # fmt: skip
# Types of a column of texts, or of token ids, and what it has to give. A char(n) is
# the text that PostgreSQL makes of it.
TEXT_TYPES = {
    "text": " Emma  ", "varchar(9)": " Emma  ", "char(9)": " Emma", "name": " Emma  ",
    "test_text": " Emma  ", "test_char": " Emma",
}  # fmt: skip
ID_TYPES = ["smallint[]", "integer[]", "bigint[]", "numeric[]", "jsonb", "test_ids"]


@pytest.fixture(scope="module")
def compiled(gpt2: Gpt2, completions: dict[int, Row]) -> str:
    """The SQL that dbt ran for the first model."""
    path = gpt2.target / "compiled/dbt_nn/models/gpt2/input/gpt2_prompts.sql"
    return path.read_text(encoding="utf-8")


def read_prompts(gpt2: Gpt2, compiled: str, rows: str) -> list[Row]:
    """What the model makes of a relation of prompts."""
    table = f"{gpt2.schema}.test_prompts"
    with contextlib.closing(database.connect()) as opened:
        cursor = opened.cursor(cursor_factory=RealDictCursor)
        cursor.execute(f"drop table {table}; create table {table} as select {rows}")
        cursor.execute(compiled)
        return cursor.fetchall()


@pytest.mark.parametrize(
    ("bad", "message"),
    BAD_ROWS,
    ids=[bad.partition("prompt_id, ")[2] for bad, _ in BAD_ROWS],
)
def test_bad_row(gpt2: Gpt2, compiled: str, bad: str, message: list[str]) -> None:
    """It says what is wrong, and is never run."""
    [found] = read_prompts(gpt2, compiled, bad)
    for part in message:
        assert part in found["error"]
    assert found["batch"] is None
    assert found["finished_at"] is not None


@pytest.mark.parametrize(
    ("bad", "message"),
    BAD_RELATIONS,
    ids=[bad.partition("prompt_id, ")[2] or bad for bad, _ in BAD_RELATIONS],
)
def test_bad_relation(gpt2: Gpt2, compiled: str, bad: str, message: list[str]) -> None:
    """What the statement raises is what dbt says and fails with, as below."""
    with pytest.raises(psycopg2.Error) as caught:
        read_prompts(gpt2, compiled, bad)
    for part in (*message, "test_prompts"):
        assert part in str(caught.value.diag.message_primary)


def test_columns_of_the_users_own(gpt2: Gpt2, compiled: str) -> None:
    """No name of theirs is taken for another, or in the way of ours."""
    columns = ", ".join(f'1 as "{name}"' for name in OTHER_COLUMNS)
    rows = f"7 as prompt_id, 'a'::text as prompt, {columns}, 3 as seed"
    [found] = read_prompts(gpt2, compiled, rows)
    assert found["error"] is None
    assert found["seed"] == 3


def test_types_of_prompts(gpt2: Gpt2, compiled: str) -> None:
    for name, base in {
        "test_text": "text", "test_char": "char(9)", "test_ids": "integer[]",
    }.items():  # fmt: skip
        gpt2.execute(f"create domain {name} as {base}")
    try:
        for kind, text in TEXT_TYPES.items():
            rows = f"7 as prompt_id, cast(' Emma  ' as {kind}) as prompt"
            [found] = read_prompts(gpt2, compiled, rows)
            assert (found["error"], found["prompt"]) == (None, text), kind
        for kind in ID_TYPES:
            value = "[1, 2]" if kind == "jsonb" else "{1, 2}"
            rows = f"7 as prompt_id, cast('{value}' as {kind}) as prompt_token_ids"
            [found] = read_prompts(gpt2, compiled, rows)
            assert found["error"] is None, kind
            assert found["prompt_token_ids"] == [1, 2], kind
    finally:
        gpt2.execute("drop domain test_text, test_char, test_ids")


def test_types_of_options(gpt2: Gpt2, compiled: str) -> None:
    """A number may be a text, and a whole one numeric."""
    gpt2.execute("create domain test_share as numeric(5, 4) check (value <= 1)")
    try:
        [found] = read_prompts(
            gpt2,
            compiled,
            "7 as prompt_id, 'a'::text as prompt, ' 0.8 '::char(9) as temperature, "
            "0.9::test_share as top_p, 5.000::numeric as max_new_tokens, "
            "40::float8 as top_k, 'yes' as do_sample, '.'::char(9) as stop_strings, "
            "9223372036854775807.0 as seed, 1.10000000000000000000000000000000000001 "
            "as repetition_penalty",
        )
    finally:
        gpt2.execute("drop domain test_share cascade")
    assert found["error"] is None
    values = {
        "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 5, "top_k": 40,
        "do_sample": True, "stop_strings": ["."], "seed": 2**63 - 1,
        "repetition_penalty": 1.1,
    }  # fmt: skip
    assert {name: found[name] for name in values} == values


# --- dbt fails, and keeps what was there --------------------------------------


@pytest.fixture(scope="module")
def bare_checkpoints(
    gpt2: Gpt2, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One of another depth, one without a tokenizer, one of an earlier version."""
    depths = {"test_shallow": 2, "test_no_tokenizer": 12, "test_old": 12}
    for name, depth in depths.items():
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        config = GPT2Config(
            n_layer=depth, n_embd=8, n_head=2, n_positions=16, vocab_size=20,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        load_checkpoint(save_network(folder, config, seed=1), name)
    gpt2.execute(
        """comment on schema test_old is 'dbt_nn checkpoint: {"source": "x"}'"""
    )
    yield
    for name in depths:
        gpt2.execute(f"drop schema {name} cascade")


BAD_RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no checkpoint": (
        {"gpt2_checkpoint": "nowhere"},
        ["nowhere", "not loaded", "python scripts/load_checkpoint.py"],
    ),
    "another depth": (
        {"gpt2_checkpoint": "test_shallow"},
        ["test_shallow", "has no h_10", "models/gpt2", "generate_network.py"],
    ),
    "of an earlier version": (
        {"gpt2_checkpoint": "test_old"},
        [
            "test_old was loaded by another version",
            "scripts/load_checkpoint.py",
            "from x",
        ],
    ),
    "no tokenizer": (
        {"gpt2_checkpoint": "test_no_tokenizer"},
        ["prompt_id 0", "no tokenizer", "prompt_token_ids"],
    ),
    "no default prompts": (
        {"gpt2_prompts": "dbt_nn_prompts"},
        ["default prompts", f"schema {SCHEMA} yet", "dbt seed --select dbt_nn_prompts"],
    ),
    "no such model": ({"gpt2_prompts": "no_such_prompts"}, ["no_such_prompts"]),
    "no such table": (
        {"gpt2_prompts": "public.no_such_prompts"},
        ["public.no_such_prompts", "does not exist"],
    ),
    "unknown option": (
        {"gpt2_options": {"temprature": 0.5}},
        ['no option is named "temprature"', "mean temperature?", "top_k"],
    ),
    "bad option": ({"gpt2_options": {"top_p": 1.5}}, ["top_p", "1.5", "at most 1"]),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_run(
    gpt2: Gpt2, rows: list[Row], completions: dict[int, Row], bare_checkpoints: None,
    case: str,
) -> None:  # fmt: skip
    variables, message = BAD_RUNS[case]
    gpt2.write_prompts(rows)
    check_fails(gpt2, message, **variables)


def test_keys_of_another_type(gpt2: Gpt2, completions: dict[int, Row]) -> None:
    gpt2.write_prompts([{"prompt_id": 1, "prompt": "good"}])
    gpt2.execute(f"alter table {SCHEMA}.test_prompts alter prompt_id type text")
    check_fails(gpt2, ["text", "integer", "--full-refresh", "DBT_NN_SCHEMA"])


def test_bad_rows_beside_good_ones(gpt2: Gpt2, completions: dict[int, Row]) -> None:
    """They get an error, the others run, and what was there stays."""
    before = gpt2.completions()
    bad = {207: {"prompt": None}, 208: {"prompt": "word " * 300}}
    gpt2.write_prompts(
        [
            {"prompt_id": 206, "prompt": "good"},
            *({"prompt_id": n, **row} for n, row in bad.items()),
        ]
    )
    done = gpt2.run()
    assert "rows with an error: 2, for example prompt_id 20" in done.stdout
    after = gpt2.completions()
    assert after[206]["error"] is None
    assert len(after[206]["token_ids"]) == DEFAULT_NEW_TOKENS
    assert "prompt" in after[207]["error"]
    assert "max_position_embeddings" in after[208]["error"]
    for n in bad:
        assert after[n]["completion"] is after[n]["finish_reason"] is None
        assert after[n]["token_ids"] == []
    assert {n: row for n, row in after.items() if n not in (206, 207, 208)} == before


def test_no_prompts(gpt2: Gpt2, completions: dict[int, Row]) -> None:
    """A relation without rows changes nothing."""
    before = gpt2.completions()
    gpt2.write_prompts([{"prompt_id": 1, "prompt": ""}])
    gpt2.execute(f"delete from {SCHEMA}.test_prompts")
    gpt2.run()
    assert gpt2.completions() == before


# --- Only what is new or changed ----------------------------------------------


def test_unchanged_rows_are_not_run_again(gpt2: Gpt2, reference: Reference) -> None:
    """Nor are those that are withdrawn lost; a changed row has a new answer."""
    rows = [
        {"prompt_id": 300 + n, "prompt": f"Miss {name} was"}
        for n, name in enumerate(["Bingley", "Lucas", "de Bourgh"])
    ]
    first = gpt2.complete(rows)
    changed = [rows[0], rows[1] | {"prompt": "Mr. Collins was"}]
    second = gpt2.complete(changed)
    assert second[300] == first[300]
    assert second[301]["token_ids"] == reference.generate(
        changed[1], max_new_tokens=DEFAULT_NEW_TOKENS
    )
    assert gpt2.completions()[302] == first[302]
    done = gpt2.run()
    assert "nothing new to generate" in done.stdout
    assert gpt2.completions()[301] == second[301]
    # options of a row, and of all, are part of what was asked
    longer = gpt2.complete([rows[0], changed[1] | {"max_new_tokens": 5}])
    assert len(longer[301]["token_ids"]) == 5
    assert longer[300] == first[300]
    assert longer[301]["options"]["max_new_tokens"] == 5
    assert longer[301]["checkpoint"] == "gpt2_twin"


def test_tables_of_layers_stay(gpt2: Gpt2, reference: Reference) -> None:
    """Other prompts are other rows; another function is another layer."""

    def complete(prompt_id: int, prompt: str) -> dict[str, Any]:
        row = {"prompt_id": prompt_id, "prompt": prompt}
        found = gpt2.complete([row])
        expected = reference.generate(row, max_new_tokens=DEFAULT_NEW_TOKENS)
        assert found[prompt_id]["token_ids"] == expected
        tables = gpt2.query(f"""
            select relname, oid from pg_class
            where relnamespace = '{gpt2.schema}_gpt2'::regnamespace and relkind = 'r'
            union all
            select oid::regprocedure::text, xmin::text::bigint from pg_proc
            where pronamespace = '{gpt2.schema}_gpt2'::regnamespace
        """)
        return {row["relname"]: row["oid"] for row in tables}

    before = complete(320, "Mr. Bingley was")
    layer = f"{gpt2.schema}_gpt2.gpt2_h_3_ln_1"
    gpt2.execute(f"create view {gpt2.schema}.of_a_layer as select * from {layer}")
    assert complete(321, "Emma Woodhouse, handsome, clever") == before
    [seen] = gpt2.query(f"select count(*) as n from {gpt2.schema}.of_a_layer")
    assert seen["n"] > DEFAULT_NEW_TOKENS
    gpt2.execute(f"drop view {gpt2.schema}.of_a_layer")
    # as a run with other macros leaves it
    gpt2.execute(
        f"create or replace function {layer}_forward("
        "all_places boolean default false, held text default 'none'"
        ") returns void language sql as ''"
    )
    after = complete(322, "It was")
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"gpt2_h_3_ln_1", f"{layer}_forward(boolean,text)"}


@pytest.mark.long
def test_another_checkpoint_answers_anew(
    gpt2: Gpt2, bare_checkpoints: None, completions: dict[int, Row]
) -> None:
    row = {"prompt_id": 310, "prompt_token_ids": [3, 1, 4]}
    first = gpt2.complete([row])
    other = gpt2.complete([row], gpt2_checkpoint="test_no_tokenizer")
    assert other[310]["checkpoint"] == "test_no_tokenizer"
    again = gpt2.complete([row])
    assert again[310]["token_ids"] == first[310]["token_ids"]
    assert again[310]["finished_at"] > other[310]["finished_at"]


@pytest.mark.long
def test_batches_give_what_one_batch_gives(gpt2: Gpt2) -> None:
    """Each in its turn, the results of all stay."""
    rows: list[Row] = [
        {"prompt_id": 400 + n, "prompt": "She was " * (n % 3 + 1), "temperature": 0.9}
        | {"max_new_tokens": n % 4, "seed": n}
        for n in range(9)
    ]
    texts = [
        {n: row["completion"] for n, row in gpt2.complete(rows, *flags).items()}
        for flags in ((), ("--full-refresh",))
    ]
    assert texts[0] == texts[1]
    gpt2.complete(rows, "--full-refresh", batch_memory="1MB")
    [batches] = gpt2.query(f"""
        select
            count(distinct batch) as n,
            count(*) filter (where finished_at is null) as unfinished
        from {SCHEMA}.gpt2_prompts
    """)
    assert batches["unfinished"] == 0
    assert batches["n"] > 3
    found = {n: row["completion"] for n, row in gpt2.completions().items()}
    assert {n: found[n] for n in texts[0]} == texts[0]


def check_fails(gpt2: Gpt2, message: list[str], **variables: Any) -> None:
    before = gpt2.completions()
    assert before
    done = gpt2.run(check=False, **variables)
    assert done.returncode != 0, done.stdout[-3000:]
    for part in message:
        assert part in done.stdout, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    assert gpt2.completions() == before


# --- A connection that is lost halfway ----------------------------------------


LONG_ROW: Row = {"prompt_id": 1, "prompt": "She", "max_new_tokens": 240}


def kill_connections(connection: Connection) -> None:
    """Those of dbt."""
    connection.cursor().execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where application_name = 'dbt'"
    )


def kill_server(connection: Connection) -> None:
    """At once, as a crash would: what is not in the log is lost."""
    data = embedded.find_place().data
    postmaster = int((data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGQUIT)


@pytest.mark.long
@pytest.mark.parametrize("kill", [kill_connections, kill_server])
def test_interrupted_run(
    gpt2: Gpt2,
    reference: Reference,
    completions: dict[int, Row],
    tmp_path: Path,
    kill: Any,
) -> None:
    """Dbt fails; the earlier completions stay; the next run goes on from there."""
    earlier = f"select * from {SCHEMA}.gpt2_completions order by prompt_id"
    before = gpt2.query(earlier)
    assert before
    row = LONG_ROW | {"prompt_id": 500 + (kill is kill_server)}
    tokens = f"""
        select position, token_id, ctid::text, xmin::text
        from {SCHEMA}.gpt2_completion_tokens
        where prompt_id = {row["prompt_id"]}
        order by position
    """
    gpt2.write_prompts([row])
    log = tmp_path / "log"
    run = gpt2.start(log)
    try:
        wait_for_tokens(gpt2, row, 5)
        assert run.poll() is None, log.read_text()
        kill(gpt2.connection)
        assert run.wait(timeout=120) != 0
    finally:
        run.kill()
        run.wait()
    output = log.read_text(encoding="utf-8")
    assert "gpt2_completion_tokens" in output
    assert "Error" in output
    assert "connection" in output, output[-3000:]
    done = run_script("server.py", "start")
    assert done.returncode == 0, done.stdout + done.stderr
    with contextlib.closing(database.connect(autocommit=True)) as opened:
        gpt2.connection = opened
        assert gpt2.query(earlier) == before
        made = gpt2.query(tokens)
        # a crash loses what the server had not yet written
        assert len(made) >= 5 or kill is kill_server
        again = gpt2.complete([row])
        expected = reference.generate(row, max_new_tokens=240)
        assert again[row["prompt_id"]]["token_ids"] == expected
        assert again[row["prompt_id"]]["completion"] == reference.decode(expected)
        assert gpt2.query(tokens)[: len(made)] == made
    gpt2.connection = database.connect(autocommit=True)


def wait_for_tokens(gpt2: Gpt2, row: Row, count: int) -> None:
    """Until so many are generated: each step is committed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        [found] = gpt2.query(
            f"select count(*) as n from {SCHEMA}.gpt2_completion_tokens "
            "where prompt_id = %s",
            [row["prompt_id"]],
        )
        if found["n"] >= count:
            return
        time.sleep(0.02)
    pytest.fail("no tokens came")
