"""A copy of this project at work on the server, in schemas of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import psycopg2
import transformers
from psycopg2 import sql

from bench.sizes import Sizes
from dbt_nn.database import PROJECT, DatabaseError, connect, profiles_path
from dbt_nn.runner import dbt

# All that a run makes in the database is in schemas whose names begin so.
SCHEMA = "dbt_nn_bench"
# A line of a loop's progress, as the macro report_progress prints it.
PROGRESS = re.compile(r"\s*\d+ left\b")

Connection = psycopg2.extensions.connection


class Project:
    """What the sides of a case work with.

    Attributes:
        schema: of the models.
        checkpoints: what the names of checkpoints' schemas begin with.
        folder: for checkpoints' files and dbt's target folders.
        sizes: what is measured.
        connection: of autocommit, a session of this project's own.

    """

    def __init__(
        self, schema: str, folder: Path, sizes: Sizes, checkpoints: str = ""
    ) -> None:
        self.schema, self.folder, self.sizes = schema, folder, sizes
        self.checkpoints = checkpoints or f"{schema}_checkpoint"
        self.connection: Connection = connect(autocommit=True)
        self.seconds: list[Project] = []
        self.execute(f"create schema if not exists {schema}")
        # a network's functions name its layers and its tokens without their schemas
        larger = (f"gpt2_{name}" for name in sizes.larger)
        family = (f"llama_{name}" for name in sizes.llama)
        networks = ("gpt2", "ddpm", "minilm", *larger, *family)
        layers = ", ".join(f"{schema}_{name}" for name in networks)
        self.execute(f"set search_path = {layers}, {schema}, public")

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        for project in (self, *self.seconds):
            # a statement may still run after Ctrl-C
            project.connection.cancel()
            project.connection.close()

    def second(self) -> Project:
        """Open another session and schema, with the same checkpoints."""
        name = f"{self.schema}_second"
        project = Project(name, self.folder, self.sizes, self.checkpoints)
        self.seconds.append(project)
        return project

    def execute(self, statement: str, *values: object) -> psycopg2.extensions.cursor:
        """Run a statement, in which {schema} is the models'; its cursor."""
        cursor = self.connection.cursor()
        schema = sql.Identifier(self.schema)
        cursor.execute(sql.SQL(statement).format(schema=schema), values or None)
        return cursor

    def value(self, statement: str, *values: object) -> Any:
        """Return the only value that a query gives."""
        return self.execute(statement, *values).fetchone()[0]

    def load(self, folder: Path, name: str, *options: str) -> str:
        """Load a checkpoint as a user does, once; its schema."""
        schema = f"{self.checkpoints}_{name}"
        if not self.value("select to_regnamespace(%s) is not null", schema):
            load(folder, schema, *options)
        return schema

    def drop(self, *schemas: str) -> None:
        for name in schemas:
            self.execute(f'drop schema if exists "{name}" cascade')

    def run_dbt(self, select: str, root: Path = PROJECT, **variables: Any) -> Path:
        """Run models in a target folder apart, so that the user's stays parsed.

        Returns the target folder.
        """
        target = self.target(root)
        arguments = ["run", "--select", select, "--full-refresh"]
        arguments += ["--target-path", str(target)]
        os.environ["DBT_NN_SCHEMA"] = self.schema
        if dbt(*arguments, variables=variables, project=root):
            raise DatabaseError(f"dbt run --select {select} failed")
        return target

    def target(self, root: Path = PROJECT) -> Path:
        return self.folder / f"target_{root.name}_{self.schema}"

    def call_dbt(self, *arguments: str, root: Path = PROJECT) -> tuple[float, float]:
        """Call dbt as a user does.

        Returns:
            Seconds of the whole command; and of the network's loop, from the first
            line of its progress to the last: 0 where it has one step.

        """
        command = [str(Path(sys.executable).with_name("dbt")), *arguments]
        command += ["--project-dir", str(root), "--target-path", str(self.target(root))]
        command += ["--profiles-dir", str(profiles_path().parent)]
        environment = {**os.environ, "DBT_NN_SCHEMA": self.schema}
        lines, progress = [], []
        started = time.perf_counter()
        with subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout or ():
                lines.append(line)
                if PROGRESS.match(line):
                    progress.append(time.perf_counter())
        seconds = time.perf_counter() - started
        if process.returncode:
            raise DatabaseError(f"{' '.join(command)} failed:\n{''.join(lines)}")
        return seconds, progress[-1] - progress[0] if progress else 0

    def step_of(self, model: str) -> Callable[[], object]:
        """One step of a network's loop, as the generation materialization makes it."""
        return lambda: self.execute(f"select {{schema}}.{model}_step()")


def load(folder: Path, schema: str, *options: str) -> None:
    """Load a checkpoint as a user does."""
    script = PROJECT / "scripts" / "load_checkpoint.py"
    command = [sys.executable, str(script), str(folder), "--name", schema, *options]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise DatabaseError("load_checkpoint.py failed")


def as_variables(variables: Mapping[str, object]) -> list[str]:
    """Dbt's option --vars."""
    return ["--vars", json.dumps(variables)]


def clean(connection: Connection) -> None:
    """Drop what a run has made, or one that was killed."""
    cursor = connection.cursor()
    cursor.execute(
        "select nspname from pg_namespace where starts_with(nspname, %s)", (SCHEMA,)
    )
    for (name,) in cursor.fetchall():
        statement = sql.SQL("drop schema if exists {} cascade")
        cursor.execute(statement.format(sql.Identifier(name)))


@contextlib.contextmanager
def prepared() -> Iterator[tuple[Connection, Path]]:
    """A connection and a folder; what a run made is gone when it ends."""
    quiet()
    with contextlib.closing(connect(autocommit=True)) as connection:
        cursor = connection.cursor()
        cursor.execute("select pg_try_advisory_lock(hashtext(%s))", (SCHEMA,))
        if not cursor.fetchone()[0]:
            raise DatabaseError("another run of bench.py is at work on this server")
        clean(connection)
        try:
            with tempfile.TemporaryDirectory(prefix="dbt_nn-bench-") as folder:
                yield connection, Path(folder)
        finally:
            clean(connection)


def quiet() -> None:
    """Libraries say nothing of their future versions and of how they load a file."""
    warnings.simplefilter("ignore", FutureWarning)
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def say(text: str) -> None:
    """Show what is going on."""
    print(text, file=sys.stderr, flush=True)
