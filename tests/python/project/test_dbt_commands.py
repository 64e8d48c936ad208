"""dbt's own commands and flags on a network: each works, or says why not.

docs/dbt-commands.md lists them; each row names its test here.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg2
import pytest
import yaml
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from dbt_nn import database
from dbt_nn import generate as generate_network
from runs import Gpt2, Row, copy_bare_project, load_checkpoint
from small_networks import TEXT, save_text

pytestmark = pytest.mark.long

TABLE = database.PROJECT / "docs" / "dbt-commands.md"
SCHEMA, OTHER = "test_dbt_commands", "test_dbt_other"
READER = "test_dbt_commands_reader"
SNAPSHOTS = {
    "completions_snapshot": {
        "relation": f"ref('{TEXT}_completions')",
        "config": {
            "unique_key": "prompt_id",
            "strategy": "check",
            "check_cols": ["completion", "error"],
        },
    },
    "questions_snapshot": {
        "relation": "ref('questions')",
        "config": {
            "unique_key": "prompt_id",
            "strategy": "check",
            "check_cols": ["prompt"],
        },
    },
}
SOURCES = {
    "name": "shop",
    "schema": SCHEMA,
    "tables": [
        {
            "name": "asked",
            "config": {
                "loaded_at_field": "asked_at",
                "freshness": {"warn_after": {"count": 1, "period": "day"}},
            },
        }
    ],
}
PROMPTS = {1: "It is a truth", 2: "Elinor"}


class Commands(Gpt2):
    """A text network that has run, and dbt's commands on it.

    Its prompts are a model of the project, over the table `asked`.
    """

    def __call__(
        self,
        *arguments: str,
        check: bool = True,
        env: dict[str, str] | None = None,
        **variables: Any,
    ) -> CompletedProcess[str]:
        """Run a command; with the vars of the others, dbt need not parse."""
        given = {f"{self.network}_prompts": "questions", **variables}
        return self.dbt(
            *arguments,
            *("--project-dir", str(self.project), "--vars", json.dumps(given)),
            env={**self.environment, **(env or {})},
            check=check,
        )

    def ask(self, prompts: Iterable[tuple[int, str]]) -> None:
        """Put these prompts in the place of what is asked."""
        self.execute(f"truncate {SCHEMA}.asked")
        for row in prompts:
            self.execute(f"insert into {SCHEMA}.asked values (%s, %s)", row)

    def texts(self, schema: str = SCHEMA) -> dict[int, str]:
        rows = self.query(f"select * from {schema}.{TEXT}_completions")
        return {row["prompt_id"]: row["completion"] for row in rows}

    def objects(self) -> list[Row]:
        """All that the network's schemas have, with what shows a new version of it."""
        return self.query(
            """
            select nspname, 'relation', relname, class.xmin::text,
                pg_relation_filenode(class.oid)
            from pg_class as class
            inner join pg_namespace as schema on relnamespace = schema.oid
            where starts_with(nspname, %(schema)s)
            union all
            select nspname, 'function', function.oid::regprocedure::text,
                function.xmin::text, null
            from pg_proc as function
            inner join pg_namespace as schema on pronamespace = schema.oid
            where starts_with(nspname, %(schema)s)
            union all
            select nspname, 'schema', '', '', null
            from pg_namespace
            where starts_with(nspname, %(schema)s)
            order by 1, 2, 3
            """,
            {"schema": SCHEMA},
        )

    def rows(self) -> list[Row]:
        """Those that the loop writes, with the transaction that wrote each."""
        return [
            row
            for name in ("prompts", "tokens", "completion_tokens", "completions")
            for row in self.query(
                f"select ctid::text, xmin::text from {SCHEMA}.{TEXT}_{name} as x"
            )
        ]


@pytest.fixture(scope="module")
def commands(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    """The small text network, after a run."""
    checkpoint = save_text(tmp_path_factory.mktemp("text"), seed=1)
    project = copy_bare_project(tmp_path_factory.mktemp("project"))
    generate_network.write(
        project / "models" / TEXT, generate_network.generate(checkpoint, TEXT)
    )
    (project / "models" / "questions.sql").write_text(
        "{{ config(materialized='view', event_time='asked_at') }}\n"
        f"select prompt_id, prompt, 3 as max_new_tokens, asked_at from {SCHEMA}.asked\n"
    )
    (project / "models" / "questions.yml").write_text(
        yaml.safe_dump(
            {
                "sources": [SOURCES],
                "snapshots": [
                    {"name": name, **snap} for name, snap in SNAPSHOTS.items()
                ],
            }
        )
    )
    load_checkpoint(checkpoint, TEXT)
    made = Commands(dbt, connection, SCHEMA, project / "target", TEXT, project)
    made.execute(
        f"create table {SCHEMA}.asked (prompt_id integer, prompt text, "
        "asked_at timestamptz default now())"
    )
    made.ask(PROMPTS.items())
    made("run", "--select", f"+{TEXT}")
    yield made
    made.drop()
    made.execute(f"drop schema if exists {SCHEMA}_{TEXT}, {TEXT} cascade")


@pytest.fixture(scope="module")
def state(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the run's manifest."""
    folder = tmp_path_factory.mktemp("state")
    commands("parse")
    shutil.copy(commands.target / "manifest.json", folder)
    return str(folder)


@pytest.fixture
def other(commands: Commands) -> Iterator[dict[str, str]]:
    """The environment of dbt in another schema."""
    schemas = f"{OTHER}, {OTHER}_{TEXT}"
    commands.execute(f"drop schema if exists {schemas} cascade")
    target = commands.project / "target-other"
    yield {"DBT_NN_SCHEMA": OTHER, "DBT_TARGET_PATH": str(target)}
    commands.execute(f"drop schema if exists {schemas} cascade")


@pytest.fixture(scope="module")
def reader(commands: Commands) -> Iterator[dict[str, str]]:
    """The environment of a role that may only read what the run has made."""
    schemas = f"{SCHEMA}, {SCHEMA}_{TEXT}, {TEXT}"
    settings = database.settings()
    commands.execute(
        f"""
        create role {READER} login;
        revoke temporary on database {settings["dbname"]} from public;
        grant usage on schema {schemas} to {READER};
        grant select on all tables in schema {schemas} to {READER};
        """
    )
    yield {
        "DBT_NN_TARGET": "server",
        "DBT_NN_HOST": settings["host"],
        "DBT_NN_PORT": str(settings["port"]),
        "DBT_NN_USER": READER,
        "DBT_NN_DATABASE": settings["dbname"],
        "DBT_TARGET_PATH": str(commands.project / "target-reader"),
    }
    commands.execute(
        f"drop owned by {READER}; drop role {READER};"
        f"grant temporary on database {settings['dbname']} to public"
    )


@pytest.fixture
def unchanged(commands: Commands) -> Iterator[None]:
    """Fail if the test makes or changes anything in the network's schemas."""
    before = commands.objects(), commands.rows()
    yield
    assert (commands.objects(), commands.rows()) == before


def table() -> list[tuple[str, str, str]]:
    """The table's rows: command or flag, outcome, test."""
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    return [(row[0], row[2], row[3].strip(" `|")) for row in cells]


def refusal(test: str) -> str:
    """What the table says that dbt says."""
    [message] = {
        outcome.removeprefix("refused: ").strip("`")
        for _, outcome, name in table()
        if name == test and outcome.startswith("refused: ")
    }
    return message


def as_json(output: str) -> dict[str, Any]:
    """The JSON that a command prints after its log."""
    return json.JSONDecoder().raw_decode(output, output.index("{\n"))[0]


def test_table() -> None:
    """Each row has an outcome and a test, each test a row."""
    rows = table()
    for name, outcome, _ in rows:
        assert re.fullmatch("works|refused: `[^`]+`", outcome), name
    tests = {name for name in globals() if name.startswith("test_")}
    assert {test for _, _, test in rows} == tests - {"test_table"}


# --- What builds --------------------------------------------------------------


def test_run(commands: Commands) -> None:
    before = commands.texts()
    assert set(before) == set(PROMPTS)
    commands(
        *("run", "--threads", "4", "--no-populate-cache", "--select", TEXT),
        *("--event-time-start", "2000-01-01", "--event-time-end", "2001-01-01"),
    )
    assert commands.texts() == before
    # without its cache dbt does not know that the view goes with a table below it
    assert commands.query(f"select * from {SCHEMA}.{TEXT}_frontier")


def test_build(commands: Commands) -> None:
    finished = f"from {SCHEMA}.{TEXT}_completions"
    [then] = commands.query(f"select max(finished_at) as at {finished}")
    before = commands.texts()
    done = commands(
        *(
            "build",
            "--full-refresh",
            "--fail-fast",
            "--threads",
            "4",
            "--cache-selected-only",
        ),
        *("--resource-type", "model", "--resource-type", "test"),
        *("--indirect-selection", "cautious"),
        *("--select", TEXT, "--exclude", f"{TEXT}_scores"),
    )
    assert f"{TEXT}_completions " in done.stdout
    assert f"{TEXT}_scores " not in done.stdout
    assert "data tests" in done.stdout
    assert "snapshot" not in done.stdout.split("Concurrency")[1]
    assert commands.texts() == before
    [first] = commands.query(f"select min(finished_at) as at {finished}")
    assert first["at"] > then["at"]


def test_retry(commands: Commands) -> None:
    """It takes the lease of what it runs again, is refused, and gives it back."""
    leases = f"{SCHEMA}.network_leases"
    commands.ask([(1, "It is a truth"), (1, "Elinor")])
    failed = commands("run", "--select", TEXT, check=False)
    assert "prompt_id 1 is there 2 times" in failed.stdout
    commands.ask({**PROMPTS, 3: "Mr."}.items())

    # another run has the lease
    session = (
        f"select {SCHEMA}.hold_lease("
        f"'{TEXT}', 'x', 'm', '{TEXT}', 'dbt run', '1 s', '0 s')"
    )
    with contextlib.closing(database.connect(autocommit=True)) as running:
        running.cursor().execute(session)
        refused = commands("retry", check=False)
        assert f"{TEXT} is being run in schema {SCHEMA} by dbt run" in refused.stdout
    wait_until = time.monotonic() + 10
    while commands.query("select 1 from pg_locks where locktype = 'advisory'"):
        assert time.monotonic() < wait_until
    commands.execute(f"update {leases} set idle_since = '-infinity'")

    # refused before anything was touched, it has all to run again
    commands("retry")
    assert set(commands.texts()) == {1, 2, 3}
    [lease] = commands.query(f"select * from {leases} where idle_since = '-infinity'")
    assert lease["holder"].startswith("dbt retry")

    # one that comes back after another run that began later has lost it
    with (
        contextlib.closing(database.connect(autocommit=True)) as late,
        pytest.raises(psycopg2.Error, match=f"another run of {TEXT} took over"),
    ):
        late.cursor().execute(session.replace("'0 s'", "'1 h'"))

    # nothing has failed: nothing to do, and no failure
    commands("run", "--select", f"{TEXT}_prompts")
    assert "Nothing to do" in commands("retry").stdout


def test_empty(commands: Commands, unchanged: None) -> None:
    refused = commands("run", "--empty", "--select", TEXT, check=False)
    assert refused.returncode != 0
    assert refusal("test_empty") in refused.stdout


def test_sample(commands: Commands) -> None:
    """Of two new prompts it completes the one of that time."""
    commands.ask({**PROMPTS, 11: "Emma", 12: "Anne"}.items())
    commands.execute(
        f"update {SCHEMA}.asked set asked_at = '2000-01-01' where prompt_id = 11"
    )
    commands("run", "--sample", "2 days", "--select", TEXT)
    assert {11, 12} & set(commands.texts()) == {12}


def test_snapshot_of_completions(commands: Commands) -> None:
    commands.ask({**PROMPTS, 1: "It is a fact"}.items())
    commands("snapshot", "--select", "completions_snapshot")
    commands("build", "--select", TEXT, "completions_snapshot")
    found = commands.query(
        f"select completion, dbt_valid_to from {SCHEMA}.completions_snapshot "
        "where prompt_id = 1 order by dbt_valid_from"
    )
    assert [row["dbt_valid_to"] is None for row in found] == [False, True]
    assert found[1]["completion"] == commands.texts()[1]


def test_snapshot_as_prompts(commands: Commands, other: dict[str, str]) -> None:
    prompts = {f"{TEXT}_prompts": "questions_snapshot"}
    commands.ask(PROMPTS.items())
    build = ["build", "--exclude-resource-type", "test", "--select", "questions"]
    build += ["questions_snapshot", f"{TEXT}_prompts"]
    commands(*build, env=other, **prompts)
    found = commands.query(f"select prompt_id, prompt from {OTHER}.{TEXT}_prompts")
    assert {row["prompt_id"]: row["prompt"] for row in found} == PROMPTS
    commands.ask({**PROMPTS, 1: "It is a fiction"}.items())
    refused = commands(*build, env=other, check=False, **prompts)
    assert refusal("test_snapshot_as_prompts") in refused.stdout


def test_clone(commands: Commands, other: dict[str, str], state: str) -> None:
    """Views; what runs there later leaves the schema that they show as it is."""
    commands.ask(PROMPTS.items())
    before = commands.objects(), commands.rows()
    commands("clone", "--state", state, "--select", f"+{TEXT}", env=other)
    assert commands.texts(OTHER) == commands.texts()
    kinds = "select distinct relkind::text from pg_class where relnamespace = "
    assert commands.query(f"{kinds} '{OTHER}'::regnamespace") == [{"relkind": "v"}]
    refused = commands(
        "run", "--select", f"{TEXT}_completion_tokens", env=other, check=False
    )
    assert "is no table, and the loop writes to the tables" in refused.stdout
    assert (commands.objects(), commands.rows()) == before
    commands("run", "--select", TEXT, env=other)
    assert set(commands.texts(OTHER)) == set(PROMPTS)
    assert (commands.objects(), commands.rows()) == before


def test_state_and_defer(
    commands: Commands, other: dict[str, str], state: str, unchanged: None
) -> None:
    layer = f"{TEXT}_h_1_ln_2"
    defer = ["--defer", "--state", state]
    folder = commands.project / "models" / TEXT / "layers" / "h_01"
    path = folder / f"{layer}.sql"
    text = path.read_text()
    try:
        path.write_text(text + "-- changed\n")
        commands("run", "--select", "state:modified", *defer, env=other)
    finally:
        path.write_text(text)
    found = f"select * from %s_{TEXT}.{layer} order by 1, 2"
    assert commands.query(found % OTHER) == commands.query(found % SCHEMA)
    made = commands.query(
        "select relname from pg_class where relkind = 'r' "
        f"and relnamespace = '{OTHER}_{TEXT}'::regnamespace"
    )
    assert made == [{"relname": layer}]

    loop = f"{TEXT}_completion_tokens"
    refused = commands("run", "--select", loop, *defer, env=other, check=False)
    assert refusal("test_state_and_defer") in refused.stdout

    commands.execute(f"create table {OTHER}.{TEXT}_completion_tokens (wrong integer)")
    commands(
        "run", "--favor-state", "--select", f"{TEXT}_completions", *defer, env=other
    )
    assert commands.texts(OTHER) == commands.texts()


def test_dbt_runner(commands: Commands) -> None:
    """A retry in the process of another command, of other models, takes its lease."""
    commands.ask([(1, "It is a truth"), (1, "Elinor")])
    arguments = ["--project-dir", str(commands.project)]
    arguments += ["--vars", json.dumps({f"{TEXT}_prompts": "questions"})]
    script = f"""
        import sys
        sys.path.insert(0, {str(database.PROJECT)!r})
        from dbt.cli.main import dbtRunner
        from dbt_nn import database

        def run(*command):
            return dbtRunner().invoke([*command, *{arguments!r}]).success

        assert not run("run", "--select", "{TEXT}")
        assert run("ls", "--select", "questions")
        with database.connect(autocommit=True) as connection:
            delete = "delete from {SCHEMA}.asked where prompt = 'Elinor'"
            connection.cursor().execute(delete)
        assert run("retry")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**database.os.environ, **commands.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert commands.texts()[1]


# --- What only reads ----------------------------------------------------------


def test_test_by_reader(
    commands: Commands, reader: dict[str, str], unchanged: None
) -> None:
    assert "ERROR=0" in commands("test", "--select", TEXT, env=reader).stdout


def test_test_of_sources(commands: Commands, unchanged: None) -> None:
    assert "data tests" in commands("test", "--select", "source:*").stdout


def test_show_by_reader(
    commands: Commands, reader: dict[str, str], unchanged: None
) -> None:
    show = ["show", "--output", "json"]
    layer = commands(*show, "--select", f"{TEXT}_h_0_ln_1", "--limit", "1", env=reader)
    [row] = as_json(layer.stdout)["show"]
    assert row["activation"].startswith("[")
    results = commands(*show, "--select", f"{TEXT}_completions", env=reader)
    query = f"select prompt_id, completion from {{{{ ref('{TEXT}_completions') }}}}"
    for shown in (results, commands(*show, "--inline", query, env=reader)):
        found = as_json(shown.stdout)["show"]
        assert {
            row["prompt_id"]: row["completion"] for row in found
        } == commands.texts()


def test_no_introspect(commands: Commands, unchanged: None) -> None:
    """As dbt does with any query."""
    for query in ("select 1", f"select * from {{{{ ref('{TEXT}_prompts') }}}}"):
        refused = commands("show", "--no-introspect", "--inline", query, check=False)
        assert refusal("test_no_introspect") in refused.stdout


def test_compile(commands: Commands, unchanged: None) -> None:
    layer = f"{TEXT}_h_0_ln_1"
    for flags in ([], ["--no-introspect", "--empty"]):
        done = commands("compile", *flags, "--select", layer)
        assert f'"{TEXT}"."h_0_ln_1"' in done.stdout


def test_docs(commands: Commands, unchanged: None) -> None:
    commands("docs", "generate")
    catalog = json.loads((commands.target / "catalog.json").read_text())
    layer = catalog["nodes"][f"model.dbt_nn.{TEXT}_h_0_ln_1"]
    assert layer["columns"]["activation"]["type"] == "vector"


def test_list(commands: Commands, unchanged: None) -> None:
    done = commands(
        *("ls", "--output", "json", "--resource-type", "model", "--select", TEXT)
    )
    names = [json.loads(x)["name"] for x in done.stdout.splitlines() if x[0] == "{"]
    assert f"{TEXT}_completions" in names


def test_source_freshness(commands: Commands, unchanged: None) -> None:
    assert "PASS freshness of shop.asked" in commands("source", "freshness").stdout


def test_run_operation(commands: Commands, unchanged: None) -> None:
    commands("run-operation", "db_function", "--args", "{name: x}")


def test_store_failures(commands: Commands, unchanged: None) -> None:
    """In dbt's schema of failures, one table a test."""
    failures = f"{SCHEMA}_dbt_test__audit"
    try:
        commands("test", "--store-failures", "--select", f"{TEXT}_h_0_ln_1")
        assert (
            commands.query(f"select * from {failures}.{TEXT}_h_0_ln_1_normalized") == []
        )
    finally:
        commands.execute(f"drop schema if exists {failures} cascade")


def test_seed(commands: Commands, other: dict[str, str], unchanged: None) -> None:
    commands("seed", env=other)
    made = commands.query(
        "select relname from pg_class where relnamespace = %s::regnamespace "
        "order by relname",
        [OTHER],
    )
    names = [row["relname"] for row in made]
    assert names == ["dbt_nn_prompts", "dbt_nn_texts"]
    functions = "select 1 from pg_proc where pronamespace = %s::regnamespace"
    assert commands.query(functions, [OTHER]) == []


# --- Without a network --------------------------------------------------------


def test_parse(commands: Commands, tmp_path: Path) -> None:
    commands("parse", "--no-partial-parse", "--target-path", str(tmp_path))
    assert (tmp_path / "manifest.json").exists()


def test_debug(commands: Commands) -> None:
    assert "All checks passed!" in commands("debug").stdout


def test_warn_error(commands: Commands, unchanged: None) -> None:
    refused = commands("--warn-error", "run", check=False)
    assert refused.returncode != 0
    assert refusal("test_warn_error") in refused.stdout


def test_deps_and_clean(dbt: Dbt, tmp_path: Path) -> None:
    project = copy_bare_project(tmp_path / "project")
    for name in ("target", "logs", "models"):
        (project / name).mkdir()
        (project / name / "file").touch()
    for command in ("deps", "clean"):
        dbt(command, "--project-dir", str(project), env={"DBT_LOG_PATH": str(tmp_path)})
    assert {path.name for path in project.iterdir()} == {
        *("dbt_project.yml", "macros", "models", "seeds", "tests")
    }
