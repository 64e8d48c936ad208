"""Conversations as prompts in dbt, against transformers' apply_chat_template."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json
from transformers import AutoTokenizer

from chat_templates import SMOLLM2
from conftest import Dbt, run_script
from runs import TWIN, Gpt2, load_checkpoint
from small_networks import TEXT, make_project, save_chat
from text_reference import Reference

SCHEMA = "test_chat"
STRICT = """{% for m in messages %}\
{% if m.role not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('No role ' + m.role) }}{% endif %}\
{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}\
{% if thinking is defined %}{{ thinking }}{% endif %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat(tmp_path_factory.mktemp("chat") / "network", STRICT, seed=3)


@pytest.fixture(scope="module")
def network(dbt: Dbt, connection: Connection, folder: Path) -> Iterator[Gpt2]:
    load_checkpoint(folder, TEXT)
    project = make_project(folder.parent / "project", folder)
    runs = Gpt2(
        dbt,
        connection,
        SCHEMA,
        folder.parent / "target",
        network=TEXT,
        project=project,
        variables={f"{TEXT}_options": f"{SCHEMA}.options"},
    )
    yield runs
    runs.drop()


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


TALKS = {
    1: [say("user", "Who is Emma? 中文 🦋")],
    2: [
        say("system", "Be brief."),
        say("user", "Hi"),
        say("assistant", "Hello."),
        say("user", "Well?"),
    ],
    3: [say("user", None)],
    4: [say("parrot", "x")],
    5: [
        say(
            "user", '\'; drop table x; -- {{ jinja }} {% raw %} $1 \\ "q" <|endoftext|>'
        )
    ],
    6: [],
    7: "no messages",
    8: [say("user", ["a", "list"])],
    9: [7],
    10: None,
    11: [{"role": "user"}],
    12: [say("user", "a"), {"content": "b", "role": None}],
}


def read(network: Gpt2, options: dict[str, Any], statement: str, *values: Any) -> Any:
    """Have the network read the rows that a statement gives, and write nothing."""
    write(network, options, statement, *values)
    return network.run("--select", f"{TEXT}_prompts", check=False)


def write(network: Gpt2, options: dict[str, Any], statement: str, *values: Any) -> None:
    """Make the relations of options and prompts."""
    network.execute(f"drop table if exists {SCHEMA}.options, {SCHEMA}.test_prompts")
    columns = ", ".join(f"%s::jsonb as {name}" for name in options)
    network.execute(
        f"create table {SCHEMA}.options as select {columns}",
        [Json(value) for value in options.values()],
    )
    network.execute(f"create table {SCHEMA}.test_prompts as {statement}", values)


def prompts(network: Gpt2) -> dict[int, dict[str, Any]]:
    rows = network.query(
        "select prompt_id, prompt, prompt_token_ids, error "
        f"from {SCHEMA}.{TEXT}_prompts"
    )
    return {row["prompt_id"]: row for row in rows}


OPTIONS = {"max_new_tokens": 2}
ROWS = """
    select (row.key)::integer as prompt_id, nullif(row.value, 'null') as messages
    from jsonb_each(%s::jsonb) as row
"""


def test_conversations(network: Gpt2, folder: Path) -> None:
    """Each is the text and the ids of transformers, or has its own error."""
    write(network, OPTIONS, ROWS, Json(TALKS))
    network.run()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = prompts(network)
    for n in (1, 2, 5):
        text = tokenizer.apply_chat_template(
            TALKS[n], tokenize=False, add_generation_prompt=True
        )
        assert found[n]["prompt"] == text
        assert (
            found[n]["prompt_token_ids"]
            == tokenizer(text, add_special_tokens=False).input_ids
        )
        assert found[n]["error"] is None
    errors = {n: row["error"] for n, row in found.items() if row["error"]}
    assert set(errors) == set(TALKS) - {1, 2, 5}
    assert errors[3] == errors[11] == "message 1 has no content"
    assert errors[12] == "message 2 has no role"
    assert errors[4] == "the chat template: No role parrot"
    for n in (6, 7, 9):
        assert "messages must be an array of objects" in errors[n]
    assert "cannot add" in errors[8]
    assert errors[10] == "has no prompt, messages or prompt_token_ids"
    done = network.completions()
    assert [n for n, row in sorted(done.items()) if row["completion"] is not None] == [
        1,
        2,
        5,
    ]
    assert done[1]["completion_tokens"] == 2
    # nothing to do
    write(network, OPTIONS, ROWS, Json(TALKS))
    network.run()
    assert network.completions()[2]["finished_at"] == done[2]["finished_at"]


def test_system_prompt(network: Gpt2, folder: Path) -> None:
    """Before the messages of those who have none; more variables of the template."""
    options = {
        **OPTIONS,
        "system_prompt": "S",
        "chat_template_kwargs": {"thinking": "T"},
    }
    talks = {n: TALKS[n] for n in (1, 2)}
    read(network, options, ROWS, Json(talks))
    found = prompts(network)
    assert found[1]["prompt"].startswith("<system>S<|endoftext|><user>Who")
    assert found[2]["prompt"].startswith("<system>Be brief.")
    assert found[1]["prompt"].endswith("T<assistant>")


def test_rows(network: Gpt2, folder: Path) -> None:
    """What a user says, rows as messages, JSON in a text; and texts beside them."""
    statement = """
        with said as (
            select * from (
                values
                (1, 2, 'assistant', 'Hello.'),
                (1, 1, 'user', 'Hi'),
                (1, 3, 'user', 'Well?')
            ) as said (chat_id, n, role, content)
        )
        select chat_id as prompt_id, null as prompt, (
            jsonb_agg(jsonb_build_object('role', role, 'content', content) order by n)
        )::text as messages, null::boolean as apply_chat_template
        from said group by chat_id
        union all
        values (2, 'Hi', null, true), (3, 'Hi', null, null), (4, '', null, null),
            (5, 'Hi', '[{"role": "user", "content": "x"}]', null)
    """
    read(network, OPTIONS, statement)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = prompts(network)
    talk = [say("user", "Hi"), say("assistant", "Hello."), say("user", "Well?")]
    for n, messages in ((1, talk), (2, talk[:1])):
        assert found[n]["prompt"] == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    # a plain text has what the tokenizer puts before it
    for n, text in ((3, "Hi"), (4, "")):
        assert found[n]["prompt"] == text
        assert found[n]["prompt_token_ids"] == tokenizer(text).input_ids
    assert found[5]["error"] == "has both a prompt and messages: give one of them"


def test_wrong_options(network: Gpt2) -> None:
    """Options that are of no use stop the run."""
    for options, message in (
        ({"system_prompt": 7}, "system_prompt must be a text, not 7"),
        (
            {"apply_chat_template": "perhaps"},
            "apply_chat_template must be true or false",
        ),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be a mapping"),
    ):
        done = read(network, options, "select 1 as prompt_id, 'a' as prompt")
        assert done.returncode != 0
        assert message in done.stdout


def test_no_template(network: Gpt2, folder: Path, tmp_path: Path) -> None:
    """Without a template, or with one that is no Jinja, conversations fail."""
    for template, message in (
        (None, "the checkpoint has no chat template: give a prompt"),
        (
            "{% if %}",
            "the checkpoint's chat template can't be run: it is no valid Jinja",
        ),
    ):
        other = save_chat(tmp_path / f"network{len(message)}", template, seed=3)
        load_checkpoint(other, TEXT)
        read(network, OPTIONS, ROWS, Json({1: TALKS[1]}))
        assert message in prompts(network)[1]["error"]
    load_checkpoint(folder, TEXT)


def test_end_of_text(folder: Path, tmp_path: Path, connection: Connection) -> None:
    """generation_config.json has the tokens that end a text."""
    other = save_chat(tmp_path / "ends", SMOLLM2, seed=3)
    (other / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    load_checkpoint(other, "test_chat_ends")
    with connection.cursor() as cursor:
        cursor.execute(
            "select value from test_chat_ends.config where parameter = 'eos_token_id'"
        )
        assert cursor.fetchone() == ([5, 7],)
        cursor.execute("drop schema test_chat_ends cascade")


@pytest.mark.long
def test_command_line(tmp_path: Path, connection: Connection) -> None:
    """The answer alone is printed: what transformers writes after the question."""
    twin = shutil.copytree(TWIN, tmp_path / "twin")
    config = json.loads((twin / "tokenizer_config.json").read_text())
    (twin / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": SMOLLM2})
    )
    name = "test_chat_twin"
    load_checkpoint(TWIN, "gpt2_twin")
    load_checkpoint(twin, name)
    environment = {
        **os.environ,
        "DBT_NN_SCHEMA": f"{SCHEMA}_line",
        "DBT_TARGET_PATH": str(tmp_path / "target"),
    }
    question = ["Who is Emma?", "--chat", "--system", "Be brief.", "max_new_tokens=6"]
    try:
        done = run_script(
            "complete.py", *question, "--checkpoint", name, env=environment
        )
        assert done.returncode == 0, done.stderr
        reference = Reference(twin)
        text = reference.tokenizer.apply_chat_template(
            [say("system", "Be brief."), say("user", question[0])],
            tokenize=False,
            add_generation_prompt=True,
        )
        row = {"prompt_token_ids": reference.tokenizer(text).input_ids}
        written = reference.generate(row, max_new_tokens=6)
        assert done.stdout == reference.decode(written) + "\n"
        done = run_script(
            "complete.py", *question, "--checkpoint", "gpt2_twin", env=environment
        )
        assert done.returncode == 1
        assert "the checkpoint has no chat template" in done.stderr
    finally:
        for schema in (name, *(f"{SCHEMA}_line{x}" for x in ("", "_gpt2"))):
            for end in ("", "_command_line", "_command_line_gpt2"):
                with connection.cursor() as cursor:
                    cursor.execute(f"drop schema if exists {schema}{end} cascade")
