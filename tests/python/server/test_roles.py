"""Roles: the rights that they need, the profile's `role`, `+grants`, schemas."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
import yaml
from psycopg2 import errors
from psycopg2.extensions import connection as Connection

from conftest import Dbt, OwnServer, run_script
from dbt_nn import database
from dbt_nn import generate as generate_network
from runs import PROJECT, TWIN, copy_bare_project, load_checkpoint
from small_networks import TEXT, save_text

# Names that are quoted everywhere, or are nowhere found.
DATABASE, RESULTS = "Test-Data.Base", "Dbt-NN 1.0"
WRITER, READER = "dbt-nn.Writer", "dbt-nn.Reader"
NEW_TOKENS = "{gpt2_options: {max_new_tokens: %d}}"
IMAGE = "{ddpm_options: {num_inference_steps: 2, seed: %d}}"
COMPLETIONS = f'select prompt_id, completion from "{RESULTS}".gpt2_completions'
PIXELS = f'select y, x, pixel::text from "{RESULTS}".ddpm_pixels'


def documented_sql(passwords: dict[str, str]) -> list[str]:
    """The blocks of docs/server.md that make the roles, with this test's names."""
    text = (PROJECT / "docs/server.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for old, new in {
        "dbt_nn_reader": f'"{READER}"',
        "database dbt_nn": f'database "{DATABASE}"',
        "schema dbt_nn": f'schema "{RESULTS}"',
        "dbt_nn": f'"{WRITER}"',
    }.items():
        assert old in blocks[0]
        blocks = [block.replace(old, new) for block in blocks]
    for role, password in passwords.items():
        before = f"create role \"{role}\" login password '…'"
        assert before in blocks[0]
        blocks[0] = blocks[0].replace(before, before.replace("…", password))
    return blocks


@pytest.fixture
def passwords(own_server: OwnServer) -> Iterator[dict[str, str]]:
    """The roles' passwords, after docs/server.md's SQL was run.

    By a role as a provider gives it, which is no superuser; the extension is made for
    it, in a schema of its own.
    """
    found = {WRITER: secrets.token_hex(), READER: secrets.token_hex()}
    provided = {"user": "test_provided", "password": secrets.token_hex()}
    roles, grants = documented_sql(found)
    with contextlib.closing(psycopg2.connect(**own_server.admin)) as admin:
        admin.autocommit = True
        cursor = admin.cursor()
        cursor.execute(
            "create role test_provided login createrole createdb password %s",
            [provided["password"]],
        )
        try:
            for connection, statements in (
                (own_server.admin | provided, f'create database "{DATABASE}"'),
                (provided, "create schema extensions"),
                ({}, "create extension vector with schema extensions"),
                (provided, roles),
                (provided, grants),
            ):
                place = own_server.admin | {"dbname": DATABASE} | connection
                with contextlib.closing(psycopg2.connect(**place)) as opened:
                    opened.autocommit = True
                    opened.cursor().execute(statements)
            yield found
        finally:
            cursor.execute(f'drop database if exists "{DATABASE}" with (force)')
            cursor.execute(f'drop role if exists "{WRITER}", "{READER}"')
            cursor.execute("drop role test_provided")


@contextlib.contextmanager
def connected(own_server: OwnServer, role: str, password: str) -> Iterator[Connection]:
    """Connect to the roles' database."""
    settings = {"dbname": DATABASE, "user": role, "password": password}
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


@pytest.mark.long
def test_a_managed_server(
    dbt: Dbt, own_server: OwnServer, passwords: dict[str, str]
) -> None:
    """The whole demo, by the least rights: load, run twice, test, and read."""
    environment = {
        **own_server.environment,
        "DBT_NN_DATABASE": DATABASE,
        "DBT_NN_SCHEMA": RESULTS,
        "DBT_NN_USER": WRITER,
        "DBT_NN_PASSWORD": passwords[WRITER],
    }
    script = {**os.environ, **environment}
    checked = run_script("server.py", "check", env=script)
    assert "the server will do" in checked.stdout, checked.stdout + checked.stderr
    # what psql and others take, quoted as a URL
    url = run_script("server.py", "url", env=script).stdout.strip()
    with contextlib.closing(
        psycopg2.connect(url, password=passwords[WRITER])
    ) as opened:
        assert ask(opened, "select current_database(), current_user::text") == [
            (DATABASE, WRITER)
        ]

    def run(tokens: int, seed: int) -> None:
        dbt("run", "--select", "gpt2", "--vars", NEW_TOKENS % tokens, env=environment)
        dbt("run", "--select", "ddpm", "--vars", IMAGE % seed, env=environment)

    load_checkpoint(TWIN, "gpt2_twin", environment)
    load_checkpoint(PROJECT / "checkpoints/ddpm-twin", "ddpm_twin", environment)
    dbt("seed", "--select", "dbt_nn_prompts", env=environment)
    run(3, 1)
    with connected(own_server, READER, passwords[READER]) as reader:
        texts, pixels = ask(reader, COMPLETIONS), ask(reader, PIXELS)
        assert texts
        assert all(text for _, text in texts)
        assert pixels
        run(4, 2)
        longer = dict(ask(reader, COMPLETIONS))
        assert all(longer[n].startswith(text) for n, text in texts)
        assert longer != dict(texts)
        assert ask(reader, PIXELS) != pixels
        for refused in (
            f"insert into \"{RESULTS}\".dbt_nn_prompts values (100, 'x')",
            f"update \"{RESULTS}\".gpt2_completions set completion = ''",
            f'delete from "{RESULTS}".ddpm_denoised',
            f'truncate "{RESULTS}".gpt2_completions',
            f'create table "{RESULTS}".own (x int)',
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
            f" where relnamespace = '\"{RESULTS}\"'::regnamespace"
            " and relkind in ('r', 'v')",
        ) == [(True,)]
    dbt(
        *("test", "--select", "gpt2_completions", "gpt2_h_0_ln_1", "ddpm_pixels"),
        *("--vars", IMAGE % 2),
        env=environment,
    )
    # a checkpoint that is there is replaced, which drops and renames schemas
    replaced = run_script(
        *("load_checkpoint.py", str(TWIN), "--name", "gpt2_twin"), env=script
    )
    assert "Loaded gpt2_twin" in replaced.stdout, replaced.stdout + replaced.stderr
    with connected(own_server, WRITER, passwords[WRITER]) as writer:
        assert ask(
            writer,
            "select rolsuper, rolcreatedb, rolcreaterole from pg_roles"
            " where rolname = current_user",
        ) == [(False, False, False)]


# --- A profile with a role, a project with grants ------------------------------

SCHEMA = "test_roles"
OWNER, LOGIN, OTHER_READER = "test-owner", "test.login", "test_reader_2"
# dbt writes a grant's role as it is; this one needs no quotes
FIRST_READER = "test_reader_1"


@dataclass
class SmallText:
    """A text network of two blocks, run by a login that is nobody without a role."""

    project: Path
    environment: dict[str, str]
    dbt: Dbt

    def configure(self, grants: dict[str, list[str]]) -> None:
        """Set `+grants` for all models of the project."""
        path = self.project / "dbt_project.yml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["models"]["dbt_nn"]["+grants"] = grants
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(self, command: str = "run", *, check: bool = True) -> str:
        return self.dbt(
            *(
                command,
                "--project-dir",
                str(self.project),
                "--select",
                f"{TEXT} dbt_nn_prompts",
            ),
            *("--vars", f"{{{TEXT}_options: {{max_new_tokens: 2}}}}"),
            env=self.environment,
            check=check,
        ).stdout


@pytest.fixture(scope="module")
def small_text(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SmallText]:
    folder = tmp_path_factory.mktemp("roles")
    checkpoint = save_text(folder / "checkpoint", seed=1)
    project = copy_bare_project(folder / "project")
    generate_network.write(
        project / "models" / TEXT, generate_network.generate(checkpoint, TEXT)
    )
    profile = yaml.safe_load(database.profiles_path().read_text(encoding="utf-8"))
    profile["dbt_nn"]["outputs"]["embedded"] |= {"user": LOGIN, "role": f'"{OWNER}"'}
    (folder / "profiles.yml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    environment = {
        "DBT_PROFILES_DIR": str(folder),
        "DBT_NN_SCHEMA": SCHEMA,
        "DBT_TARGET_PATH": str(folder / "target"),
    }
    roles = f'"{OWNER}", "{LOGIN}", {FIRST_READER}, {OTHER_READER}'
    cursor = connection.cursor()
    cursor.execute(f"""
        revoke temporary on database dbt_nn from public;
        create role "{OWNER}";
        grant create, temporary on database dbt_nn to "{OWNER}";
        create role "{LOGIN}" login noinherit in role "{OWNER}";
        create role {FIRST_READER};
        create role {OTHER_READER};
    """)
    try:
        load_checkpoint(checkpoint, TEXT, environment)
        yield SmallText(project, environment, dbt)
    finally:
        cursor.execute(f"drop owned by {roles} cascade; drop role {roles}")
        cursor.execute("grant temporary on database dbt_nn to public")


@pytest.fixture
def granted(connection: Connection) -> Callable[[str], dict[str, bool]]:
    """A function that says which relations of the results a role may read."""

    def may_read(role: str) -> dict[str, bool]:
        return dict(
            ask(
                connection,
                f"select relname, has_table_privilege('{role}', oid, 'select')"
                " from pg_class where relkind in ('r', 'v')"
                f" and relnamespace::regnamespace::text ~ '^{SCHEMA}'"
                f" and relname ~ '^{TEXT}'",
            )
        )

    return may_read


@pytest.mark.long
def test_role_and_grants(
    small_text: SmallText,
    connection: Connection,
    granted: Callable[[str], dict[str, bool]],
) -> None:
    """Dbt's own tables and views beside ours are the oracle of both."""
    small_text.configure({"select": [FIRST_READER]})
    small_text.run("build")
    assert ask(
        connection,
        "select distinct pg_get_userbyid(relowner)::text from pg_class"
        f" where relnamespace::regnamespace::text ~ '^{SCHEMA}|^{TEXT}$'"
        " union all select distinct pg_get_userbyid(proowner)::text from pg_proc"
        f" where pronamespace::regnamespace::text ~ '^{SCHEMA}'",
    ) == [(OWNER,), (OWNER,)]
    first = granted(FIRST_READER)
    assert len(first) > 20
    assert all(first.values()), first
    assert not any(granted(OTHER_READER).values())

    # layers that stay as they are lose the first reader, too
    small_text.configure({"select": [OTHER_READER]})
    small_text.run()
    assert granted(OTHER_READER) == first
    assert not any(granted(FIRST_READER).values())


@pytest.mark.long
def test_layers_beside_weights(small_text: SmallText, connection: Connection) -> None:
    """Another project's generate_schema_name names layers' schemas as it likes."""
    macro = small_text.project / "macros" / "generate_schema_name.sql"
    macro.write_text(
        "{% macro generate_schema_name(custom_schema_name, node) -%}"
        "{{ custom_schema_name or target.schema }}{%- endmacro %}",
        encoding="utf-8",
    )
    tables = (
        f"select count(*) from pg_class where relnamespace = '{TEXT}'::regnamespace"
    )
    before = ask(connection, tables)
    try:
        said = small_text.run(check=False)
    finally:
        macro.unlink()
    assert f"models of {TEXT} would be built in the schema {TEXT}, beside" in said
    assert ask(connection, tables) == before
