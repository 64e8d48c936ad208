"""The least rights that the README gives, to the role that runs and to a reader."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator

import psycopg2
import pytest
from psycopg2 import errors
from psycopg2.extensions import connection as Connection

import database
from conftest import Dbt, OwnServer, run_script
from gpt2_runs import PROJECT, TWIN, load_checkpoint

WRITER, READER = "dbt_nn", "dbt_nn_reader"
TEXT = "{gpt2_options: {max_new_tokens: %d}}"
IMAGE = "{ddpm_options: {num_inference_steps: 2, seed: %d}}"
COMPLETIONS = "select prompt_id, completion from dbt_nn.gpt2_completions"
PIXELS = "select y, x, pixel::text from dbt_nn.ddpm_pixels"


@pytest.fixture
def passwords(own_server: OwnServer) -> Iterator[dict[str, str]]:
    """The roles' passwords, after the README's SQL was run by the superuser."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sql\n(create extension.*?)```", text, re.DOTALL)
    found = {WRITER: secrets.token_hex(), READER: secrets.token_hex()}
    for role, password in found.items():
        block, count = re.subn(
            rf"(create role {role} login password) '…'", rf"\1 '{password}'", block
        )
        assert count == 1
    with contextlib.closing(psycopg2.connect(**own_server.admin)) as admin:
        admin.autocommit = True
        cursor = admin.cursor()
        cursor.execute(f"create database {WRITER}")
        try:
            settings = {**own_server.admin, "dbname": WRITER}
            with contextlib.closing(psycopg2.connect(**settings)) as opened:
                opened.autocommit = True
                opened.cursor().execute(block)
            yield found
        finally:
            cursor.execute(f"drop database {WRITER} with (force)")
            cursor.execute(f"drop role if exists {WRITER}, {READER}")


@contextlib.contextmanager
def connected(own_server: OwnServer, role: str, password: str) -> Iterator[Connection]:
    """Connect to the roles' database."""
    settings = {"dbname": WRITER, "user": role, "password": password}
    with contextlib.closing(
        psycopg2.connect(**{**own_server.admin, **settings})
    ) as opened:
        opened.autocommit = True
        yield opened


def ask(connection: Connection, query: str) -> list[tuple]:
    """The rows of a query."""
    cursor = connection.cursor()
    cursor.execute(query)
    return cursor.fetchall()


@pytest.mark.slow
def test_least_rights(
    dbt: Dbt, own_server: OwnServer, passwords: dict[str, str]
) -> None:
    """Load, run twice, read what each run made, and write by the writer alone."""
    environment = {
        **own_server.environment,
        "DBT_NN_DATABASE": WRITER,
        "DBT_NN_USER": WRITER,
        "DBT_NN_PASSWORD": passwords[WRITER],
    }

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert database.settings()["schema"] == "dbt_nn"
        checked = run_script("server.py", "check")
    assert "the server will do" in checked.stdout, checked.stdout + checked.stderr

    def run(tokens: int, seed: int) -> None:
        dbt("run", "--select", "gpt2", "--vars", TEXT % tokens, env=environment)
        dbt("run", "--select", "ddpm", "--vars", IMAGE % seed, env=environment)

    load_checkpoint(TWIN, "gpt2_twin", environment)
    load_checkpoint(PROJECT / "checkpoints/ddpm-twin", "ddpm_twin", environment)
    dbt("seed", "--select", "prompts", env=environment)
    run(3, 1)
    with connected(own_server, READER, passwords[READER]) as reader:
        texts, pixels = ask(reader, COMPLETIONS), ask(reader, PIXELS)
        assert texts
        assert pixels
        run(4, 2)
        longer = dict(ask(reader, COMPLETIONS))
        assert all(longer[n].startswith(text) for n, text in texts)
        assert longer != dict(texts)
        assert ask(reader, PIXELS) != pixels
        for refused in (
            "insert into dbt_nn.prompts values (100, 'x')",
            "update dbt_nn.gpt2_completions set completion = ''",
            "delete from dbt_nn.ddpm_denoised",
            "truncate dbt_nn.gpt2_completions",
            "create table dbt_nn.own (x int)",
            "create table public.own (x int)",
            "create temporary table own (x int)",
            "create schema own",
            "select * from gpt2_twin.wte",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                reader.cursor().execute(refused)
        # nothing is the reader's, and no table of the results is closed to it
        assert ask(
            reader,
            "select bool_and(has_table_privilege(oid, 'select')) from pg_class"
            " where relnamespace = 'dbt_nn'::regnamespace and relkind in ('r', 'v')",
        ) == [(True,)]
    # a checkpoint that is there is replaced, which drops and renames schemas
    replaced = run_script(
        *("load_checkpoint.py", str(TWIN), "--name", "gpt2_twin"),
        env={**os.environ, **environment},
    )
    assert "Loaded gpt2_twin" in replaced.stdout, replaced.stdout + replaced.stderr
    with connected(own_server, WRITER, passwords[WRITER]) as writer:
        assert ask(
            writer,
            "select rolsuper, rolcreatedb, rolcreaterole from pg_roles"
            " where rolname = current_user",
        ) == [(False, False, False)]
