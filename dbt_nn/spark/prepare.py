"""Makes a network ready for executors: dbt compiles and runs it once on the driver.

The driver has a PostgreSQL of its own for half a minute. There dbt builds the network
on a relation without rows, and pg_dump writes down what it built: tables, functions and
views. Executors make the same of that, and need no dbt. What is prepared is kept in the
user's cache, and made again where the task, the models or the checkpoint have changed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import psycopg2
import yaml
from psycopg2 import sql

from dbt_nn import __version__, embedded
from dbt_nn.command_line import PROJECT
from dbt_nn.database import PROFILE
from dbt_nn.spark.plan import (
    DATABASE,
    INPUT,
    SCHEMA,
    Column,
    SparkError,
    Task,
    models_of,
)
from dbt_nn.spark.server import Server, wanted_buffers, with_server

FORMAT = 2  # of what is kept
KEPT = 20  # prepared networks in the cache


@dataclass(frozen=True)
class Step:
    """A model of the network, in the order of the DAG: how a batch's rows come there.

    how: 'insert' what `statement` selects, 'layer' calls its function, 'loop' calls the
        functions of the network's loop.
    """

    how: str
    relation: str
    statement: str = ""


@dataclass(frozen=True)
class Network:
    """What an executor needs beside the checkpoint."""

    schemas: tuple[str, ...]
    ddl: str  # gzip, base64
    steps: tuple[Step, ...]
    emptied: tuple[str, ...]  # the tables that a batch begins with empty
    sent: tuple[Column, ...]  # the columns that the network reads
    results: tuple[Column, ...]  # the columns of the results

    @property
    def statements(self) -> str:
        """What makes the schemas' tables, functions and views."""
        return gzip.decompress(base64.b64decode(self.ddl)).decode()


# --- Kept in the cache ------------------------------------------------------------


def cache_folder() -> Path:
    """Where they are."""
    return platformdirs.user_cache_path("dbt_nn") / "spark"


def prepared(task: Task) -> Network:
    """The network of a task, from the cache if it is there.

    Raises:
        SparkError: dbt refuses the options, the columns or the network.

    """
    key = hashlib.sha256()
    told = {"format": FORMAT, "version": __version__, **asdict(task)}
    key.update(json.dumps(told, sort_keys=True, default=str).encode())
    for file in models_of(task):
        key.update(file.read_bytes())
    folder = cache_folder()
    path = folder / f"{key.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = _read(json.loads(path.read_text(encoding="utf-8")))
        path.touch()
        return kept
    made = prepare(task)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(asdict(made)), encoding="utf-8")
        partial.replace(path)
        files = sorted(folder.glob("*.json"), key=lambda file: -file.stat().st_mtime)
        for file in files[KEPT:]:
            file.unlink()
    return made


def _read(kept: dict[str, Any]) -> Network:
    """What was kept, as it was."""
    return Network(
        tuple(kept["schemas"]),
        kept["ddl"],
        tuple(Step(**step) for step in kept["steps"]),
        tuple(kept["emptied"]),
        tuple(Column(**column) for column in kept["sent"]),
        tuple(Column(**column) for column in kept["results"]),
    )


# --- Made by dbt ------------------------------------------------------------------


def prepare(task: Task) -> Network:
    """Build the network on a server of the driver's, and describe what was built."""
    server = with_server(
        task.source, wanted_buffers(task.source), lambda made: _input(made, task)
    )
    try:
        # it goes with the server, whatever ends this process
        folder = Path(server.home) / "dbt"
        folder.mkdir()
        results = _run_dbt(task, server, folder)
        return _describe(task, server, results, folder)
    finally:
        server.close()


def _input(server: Server, task: Task) -> None:
    """Make the relation that the network reads, without rows."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column.as_name), sql.SQL(column.type))
        for column in task.columns
    )
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"create schema {SCHEMA}")
        cursor.execute(
            sql.SQL("create table {} ({})").format(
                sql.Identifier(SCHEMA, INPUT), columns
            )
        )


def _make_project(task: Task, folder: Path) -> tuple[Path, str]:
    """The dbt project that has the network, and the name of its profile.

    Of ours the network's models alone, since dbt parses all that is there.
    """
    if task.project:
        home = Path(task.project)
        settings = yaml.safe_load((home / "dbt_project.yml").read_text("utf-8"))
        return home, settings["profile"]
    project = folder / "project"
    (project / "models").mkdir(parents=True)
    (project / "tests").mkdir()
    shutil.copy(PROJECT / "dbt_project.yml", project)
    for name in ("macros", "seeds", "tests/generic"):
        (project / name).symlink_to(PROJECT / name)
    # dbt follows no links in there
    models = Path("models", task.network)
    shutil.copytree(PROJECT / models, project / models)
    return project, PROFILE


def _run_dbt(task: Task, server: Server, folder: Path) -> list[dict[str, Any]]:
    """Run the network; return the models as run_results.json and manifest.json tell."""
    project, profile = _make_project(task, folder)
    output = {
        "type": "postgres",
        "host": server.socket,
        "port": embedded.PORT,
        "user": embedded.NAME,
        "password": "",
        "dbname": DATABASE,
        "schema": SCHEMA,
        "threads": 1,
    }
    outputs = {"target": "embedded", "outputs": {"embedded": output}}
    (folder / "profiles.yml").write_text(yaml.safe_dump({profile: outputs}))
    target = folder / "target"
    arguments = ["--quiet", "run", "--select", task.network]
    arguments += ["--vars", json.dumps(dict(task.variables))]
    arguments += ["--project-dir", str(project), "--profiles-dir", str(folder)]
    arguments += ["--target-path", str(target), "--log-path", str(folder / "logs")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DBT_", "PG"))}
    done = subprocess.run(
        [sys.executable, "-c", "from dbt.cli.main import cli; cli()", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=project,
        env={
            **kept,
            "DBT_USE_COLORS": "false",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "PYTHONUTF8": "1",
        },
    )
    if done.returncode:
        raise SparkError(_reason(done.stdout))
    nodes = json.loads((target / "manifest.json").read_text("utf-8"))["nodes"]
    results = json.loads((target / "run_results.json").read_text("utf-8"))["results"]
    return [
        {**nodes[result["unique_id"]], "compiled": result["compiled_code"]}
        for result in results
    ]


def _reason(output: str) -> str:
    """What dbt says of an error, without its frame."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d\s*", "", line) for line in output.splitlines()]
    lines = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines[:-1]):
        if re.match(r"(Database|Compilation|Runtime) Error in ", line):
            return lines[number + 1]
    return "dbt can't build the network:\n" + "\n".join(lines[-20:])


# --- What was built ---------------------------------------------------------------


def _ancestors(name: str, nodes: dict[str, dict]) -> set[str]:
    """The unique ids of a model and of all that it reads."""
    waiting, found = [name], set()
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in found:
            found.add(name)
            waiting += nodes[name]["depends_on"]["nodes"]
    return found


def _steps(task: Task, models: list[dict]) -> Iterable[tuple[Step, bool]]:
    """The steps in the order of the DAG, and whether the step's table keeps rows."""
    nodes = {node["unique_id"]: node for node in models}
    by_name = {node["name"]: node["unique_id"] for node in models}
    if task.results not in by_name:
        raise SparkError(f"{task.network} has no model {task.results}")
    wanted = _ancestors(by_name[task.results], nodes)
    for node in models:
        if node["config"]["materialized"] == "generation":
            wanted |= _ancestors(node["unique_id"], nodes)
    for node in models:
        kind, meta = node["config"]["materialized"], node["config"]["meta"]
        relation = node["relation_name"]
        if kind == "layer":
            function = _function(node, "forward")
            yield Step("layer", relation, function), meta.get("history") == "keep"
        elif node["unique_id"] not in wanted or kind in ("view", "session"):
            continue
        elif kind == "generation":
            yield Step("loop", relation, _function(node, "")), True
        else:
            yield Step("insert", relation, node["compiled"]), True


def _function(node: dict, name: str) -> str:
    """A function of a model: "schema"."model_name"."""
    return f'"{node["schema"]}"."{node["alias"]}_{name}"'


def _describe(task: Task, server: Server, models: list[dict], folder: Path) -> Network:
    """What executors need of it."""
    steps = list(_steps(task, models))
    schemas = tuple(dict.fromkeys(node["schema"] for node in models))
    with closing(server.connect()) as connection:
        # where dbt found them: the schemas of a network, and the extension's
        with connection.cursor() as cursor:
            cursor.execute(search_path(schemas))
        first = _first(task, [step for step, _ in steps])
        sent = _sent(task, first)
        network = Network(
            schemas,
            base64.b64encode(gzip.compress(_dump(server, schemas, folder))).decode(),
            tuple(step for step, _ in steps),
            tuple(step.relation for step, keeps in steps if keeps),
            sent,
            _result_columns(task, connection),
        )
        _check_columns(connection, first, sent[0])
    return network


def search_path(schemas: Iterable[str]) -> str:
    """A statement that makes a session find the network's relations by their names."""
    names = ", ".join(f'"{schema}"' for schema in schemas)
    return f"set search_path = {names}, public"


def _dump(server: Server, schemas: Iterable[str], folder: Path) -> bytes:
    """The statements that make the schemas again, without rows."""
    path = folder / "dump.sql"
    place = embedded.wheel_folder() / "bin"
    arguments = ["--schema-only", "--no-owner", "--no-privileges", "--no-comments"]
    arguments += [f"--schema={schema}" for schema in schemas]
    arguments += [f"--host={server.socket}", f"--port={embedded.PORT}"]
    arguments += [f"--username={embedded.NAME}", f"--file={path}", DATABASE]
    done = subprocess.run(
        [str(place / "pg_dump"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=embedded.clean_environment(),
    )
    if done.returncode:
        raise SparkError(f"pg_dump: {done.stderr.strip()}")
    # psql's own commands
    return re.sub(rb"(?m)^\\(un)?restrict .*$", b"", path.read_bytes())


def _relation_columns(
    connection: psycopg2.extensions.connection, relation: str
) -> dict[str, str]:
    """Names and types of a relation's columns."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute "
            "where attrelid = %s::regclass and attnum > 0 and not attisdropped "
            "order by attnum",
            [f'"{SCHEMA}"."{relation}"'],
        )
        return dict(cursor.fetchall())


def _first(task: Task, steps: Iterable[Step]) -> Step:
    """The step that reads the relation of the rows."""
    made = {"encoder": "texts", "text": "prompts", "diffusion": "requests"}
    name = f'"{task.network}_{made[task.source.family]}"'
    return next(step for step in steps if step.relation.endswith(name))


def _sent(task: Task, first: Step) -> tuple[Column, ...]:
    """The columns that the network reads: keys, texts and options.

    Of a whole row it takes the fields that its statement names as literals.
    """
    if task.source.family == "encoder":
        return task.columns
    return tuple(
        column
        for column in task.columns
        if column.name == task.key or f"'{column.as_name}'" in first.statement
    )


def _result_columns(
    task: Task, connection: psycopg2.extensions.connection
) -> tuple[Column, ...]:
    """The columns of the results; of images a picture instead of pixels."""
    columns = _relation_columns(connection, task.results)
    if task.kind == "draw":
        columns = {
            "image_id": columns["image_id"],
            "png": "bytea",
            **{k: v for k, v in columns.items() if k not in ("request", "batch")},
            "checkpoint": "text",
        }
    return tuple(Column(name, name, kind) for name, kind in columns.items())


def _check_columns(
    connection: psycopg2.extensions.connection, first: Step, key: Column
) -> None:
    """Let the network look at columns and options, on a row of one key.

    What is wrong with them stops all rows: the driver says it before Spark begins.
    """
    keys = {"text": "1", "boolean": "true", "bytea": "'1'", "date": "'2000-01-01'"}
    value = keys.get(key.type, "'2000-01-01'" if "time" in key.type else "'1'")
    column = sql.Identifier(key.as_name)
    relation = sql.Identifier(SCHEMA, INPUT)
    try:
        with connection.cursor() as cursor:
            cursor.execute("begin")
            cursor.execute(
                sql.SQL("insert into {} ({}) values ({}::{})").format(
                    relation, column, sql.SQL(value), sql.SQL(key.type)
                )
            )
            cursor.execute(f"select from ({first.statement}\n) as row")
    except psycopg2.Error as error:
        raise SparkError(database_reason(error)) from None
    finally:
        with connection.cursor() as cursor:
            cursor.execute("rollback")


def database_reason(error: psycopg2.Error) -> str:
    """What the database says, in a line."""
    return error.diag.message_primary or " ".join(str(error).split())
