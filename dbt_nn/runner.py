"""dbt on this project, for the commands that run a network."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from psycopg2 import sql
from psycopg2.extras import Json
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column
from rich.text import Text

from dbt_nn.command_line import start_command, user_project
from dbt_nn.database import (
    PROJECT,
    DatabaseError,
    connect,
    own_schema,
    profiles_path,
    project_settings,
    quoted,
    settings,
)

if TYPE_CHECKING:  # to import dbt takes two seconds
    from dbt.contracts.graph.manifest import Manifest
    from dbt_common.events.base_types import EventMsg

LINE_S = 10  # between two lines of progress where no terminal shows it
TEXTS = 10  # that grow on lines of their own; of more, the pace is shown alone

STEP = '{"network": '  # how the report of a loop's step begins
PROMPTS = "command_line_prompts"  # tables that a command line's run reads
OPTIONS = "command_line_options"

Pieces = Mapping[str, tuple[int, str]]  # by prompt_id: tokens before, and the text


# --- Options of the command line ----------------------------------------------


def parse_option(text: str) -> tuple[str, object]:
    """`temperature=0.8` -> ("temperature", 0.8); the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise DatabaseError(
            f"option {text!r} is not of the form name=value, such as seed=7"
        )
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise DatabaseError(f"option {text!r}: {error}") from None


def parse_options(texts: Sequence[str]) -> dict[str, object]:
    """Options as arguments or, if there are none, from the environment's OPTIONS."""
    if not texts:
        try:
            texts = shlex.split(os.environ.get("OPTIONS", ""))
        except ValueError as error:
            raise DatabaseError(f"OPTIONS: {error}") from None
    return dict(parse_option(text) for text in texts)


# --- A run of the command line's own ------------------------------------------


def use_own_schema(network: str, checkpoint: str | None) -> tuple[str, dict]:
    """Turn dbt and this process to the command line's schema.

    So what a command is asked leaves the results of the user's relations alone.
    What is in --vars is part of what dbt parsed, and to parse the project anew takes
    it a quarter of a minute: so prompts and options are rows, and the vars stay.

    Args:
        network: name of its folder in models/.
        checkpoint: schema of a loaded one (default: the project's var).

    Returns:
        The schema and the vars.

    """
    results = settings()["schema"]
    schema = own_schema(results)
    os.environ["DBT_NN_SCHEMA"] = schema
    if settings()["schema"] != schema:
        raise DatabaseError(
            "profiles.yml does not take its schema from DBT_NN_SCHEMA, so that this "
            f"would replace your results in {results}. Give it "
            "schema: \"{{ env_var('DBT_NN_SCHEMA', '" + results + "') }}\""
        )
    variables = {"gpt2_prompts": quoted(schema, PROMPTS)}
    for name in sorted({"gpt2", "ddpm", network}):
        variables[f"{name}_options"] = quoted(schema, f"{name}_{OPTIONS}")
    for name in sorted({"ddpm", network} - {"gpt2"}):
        variables[f"{name}_requests"] = None
    folder = ["command_line"]
    if network not in ("gpt2", "ddpm"):
        folder.append(network)
    if checkpoint:
        folder.append(checkpoint)
        variables[f"{network}_checkpoint"] = checkpoint
    target = user_project() / "target" / "-".join(folder)
    os.environ.setdefault("DBT_TARGET_PATH", str(target))
    return schema, variables


def write_row(schema: str, table: str, row: Mapping[str, tuple[str, object]]) -> None:
    """Make a table of one row, given as {column: (type, value)}."""
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
        for name, (kind, _) in row.items()
    ]
    names = {
        "schema": sql.Identifier(schema),
        "table": sql.Identifier(schema, table),
        "columns": sql.SQL(", ").join(columns),
        "values": sql.SQL(", ").join([sql.Placeholder()] * len(row)),
    }
    with closing(connect()) as connection, connection, connection.cursor() as cursor:
        for statement in (
            "create schema if not exists {schema}",
            "drop table if exists {table}",
            "create table {table} ({columns})",
        ):
            cursor.execute(sql.SQL(statement).format(**names))
        insert = "values ({values})" if row else "default values"
        statement = sql.SQL(f"insert into {{table}} {insert}").format(**names)
        cursor.execute(statement, [value for _, value in row.values()])


def write_options(schema: str, network: str, options: Mapping[str, object]) -> None:
    """Make the relation of a run's options."""
    # json keeps the order of an object's keys, which jsonb does not
    row = {name: ("json", Json(value)) for name, value in options.items()}
    write_row(schema, f"{network}_{OPTIONS}", row)


# --- Networks --------------------------------------------------------------------

# The kinds of networks, each with a model that it alone has.
OWN_MODELS = {"text": "completion_tokens", "image": "denoised"}
DOES = {"text": "writes texts", "image": "draws images"}
INSIGHT = {"text": "logit_lens", "image": "predictions"}


def networks_with(model: str) -> list[str]:
    """The networks of the user's project, or of this one, that have such a model."""
    paths = project_settings().get("model-paths") or ["models"]
    folders = {user_project() / path for path in paths} | {PROJECT / "models"}
    return sorted(
        {
            path.stem.removesuffix(f"_{model}")
            for folder in folders
            for path in folder.rglob(f"*_{model}.sql")
        }
    )


def check_network(network: str, kind: str, *, insight: bool = False) -> None:
    """Refuse a network that a command can't run, before any work.

    Args:
        network: its name.
        kind: `text` or `image`, what it has to be.
        insight: whether models that look inside it are needed.

    Raises:
        DatabaseError: there is none of that name, or it is of another kind.

    """
    own = networks_with(OWN_MODELS[kind])
    if network not in own:
        others = [
            name
            for model in (*OWN_MODELS.values(), "embeddings", "classes")
            for name in networks_with(model)
        ]
        problem = f"is no network that {DOES[kind]}"
        if network not in others:
            problem = "is no network of this project"
        raise DatabaseError(
            f"{network} {problem}: choose one of {', '.join(own)}, or write the models "
            "of another by `dbt-nn generate`"
        )
    seen = networks_with(INSIGHT[kind])
    if insight and network not in seen:
        raise DatabaseError(
            f"{network} has no models that look inside it, which `dbt-nn generate` "
            f"writes for GPT-2 and UNets only: choose one of {', '.join(seen)}"
        )


# --- dbt ------------------------------------------------------------------------


class Display:
    """What a run shows on stderr.

    On a terminal a line that is kept up to date, elsewhere a line in a while.
    """

    def __init__(self, texts: Callable[[Pieces], None] | None = None):
        """Args: texts: is given each step's pieces, and shows them itself."""
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.texts = texts
        self.growing: dict[str, str] = {}  # several texts by prompt_id
        self.steps = 0  # of the loop, all
        self.step_line = ""  # the newest, as dbt prints it as well
        self.written = time.monotonic()
        self.said = False  # anything but progress
        name = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self.bar = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False, table_column=name),
            BarColumn(self.console.width // 5),
            TextColumn(
                "{task.fields[right]}", markup=False, table_column=Column(no_wrap=True)
            ),
            console=self.console,
            expand=True,
        )
        self.task = self.bar.add_task("dbt reads the project", total=None, right="")
        self.live = Live(
            get_renderable=self._render,
            console=self.console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=8,
        )

    def _render(self) -> Group:
        width = self.console.width
        lines = [
            Text(f"{name}  {tail(text, width - len(name) - 3)}", no_wrap=True)
            for name, text in sorted(self.growing.items(), key=natural)
        ]
        return Group(*lines if len(lines) <= TEXTS else [], self.bar)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def write(self, line: str) -> None:
        """Print a line above what is kept up to date."""
        self.said = True
        # `... | head`, a full disk: dbt waits forever for a callback that raises
        with suppress(OSError, ValueError):
            self.console.print(Text(line))

    def line_in_a_while(self, line: str, *, now: bool = False) -> None:
        """Write a line of progress if no terminal shows it, not too often."""
        if self.console.is_terminal:
            return
        if now or time.monotonic() - self.written >= LINE_S:
            self.written = time.monotonic()
            self.write(line)

    def model(self, name: str, index: int, total: int) -> None:
        """Show which model or test dbt begins."""
        right = f"{index}/{total}"
        self.growing.clear()
        self.steps, self.step_line = 0, ""
        self.bar.update(
            self.task, description=name, completed=index, total=total, right=right
        )
        self.line_in_a_while(f"{index} of {total}: {name}")

    def step(self, step: Mapping[str, Any]) -> None:
        """A step of a network's loop was made."""
        first = not self.step_line
        self.step_line = step["line"]
        pieces: Pieces = step["pieces"]
        if self.texts:
            self.live.stop()
            self.texts(pieces)
            return
        for name, (_, piece) in pieces.items():
            self.growing[name] = self.growing.get(name, "") + piece
        left = step["steps_left"]
        self.steps = max(self.steps, left)
        self.bar.update(
            self.task,
            description=step["network"],
            completed=self.steps - left,
            total=self.steps or 1,
            right=step["pace"] or f"{left} left",
        )
        if self.steps:
            self.line_in_a_while(self.step_line.strip(), now=first or left == 0)

    def event(self, event: EventMsg) -> None:
        """What dbt calls for each of its events, in any of its threads."""
        kind, text = event.info.name, event.info.msg
        if kind == "JinjaLogDebug" and text.startswith(STEP):
            self.step(json.loads(text))
        elif isinstance(sys.exception(), KeyboardInterrupt):
            pass  # dbt's stack trace of it
        elif kind == "PrintEvent" and text == self.step_line:
            pass
        elif kind == "PrintEvent" or event.info.level == "error":
            self.write(text)
        elif kind == "LogStartLine":
            data = event.data
            self.model(data.node_info.node_name, data.index, data.total)


def natural(item: tuple[str, str]) -> tuple[int, str]:
    """Numbers before texts, in their order."""
    name = item[0]
    return (len(name), name) if name.isdecimal() else (1 << 30, name)


def tail(text: str, width: int) -> str:
    """The end of a text on one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else "..." + line[len(line) - max(width - 3, 0) :]


def printable(text: str) -> str:
    """The text as a terminal may show it: control characters as their pictures."""
    return "".join(
        chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else c for c in text
    ).replace("\x7f", "\u2421")


def _invoke(
    callbacks: list[Callable[[EventMsg], None]],
    arguments: Sequence[str],
    variables: Mapping[str, object] | None,
    project: Path,
    manifest: Manifest | None = None,
) -> Any:
    """Call dbt, quiet but for the callbacks; return its dbtRunnerResult."""
    from dbt.cli.main import dbtRunner

    profiles = profiles_path()
    if not profiles.exists():
        raise DatabaseError(f"{profiles} is not there: run `{start_command()}`")
    # manifest.json is 4 MB that nobody reads here, and an eighth of dbt's start
    command = ["--log-level", "none", "--no-write-json"]
    if not sys.stderr.isatty():
        command.append("--no-use-colors")
    command += [*arguments, "--project-dir", str(project)]
    command += ["--profiles-dir", str(profiles.parent)]
    if variables is not None:
        command += ["--vars", json.dumps(variables)]
    result = dbtRunner(manifest, callbacks).invoke(command)
    if isinstance(result.exception, KeyboardInterrupt):
        raise result.exception
    return result


def dbt(
    *arguments: str,
    variables: Mapping[str, object] | None = None,
    texts: Callable[[Pieces], None] | None = None,
    project: Path | None = None,
    manifest: Manifest | None = None,
) -> int:
    """Run dbt in the project; show how far it is, print() and errors only.

    Args:
        arguments: of the command line.
        variables: its vars.
        texts: is given the pieces of text of each step, and shows them.
        project: its folder (default: the one that the user is in).
        manifest: of `parse`, so that dbt does not parse; the vars may be others only
            where models read them as they run, as they do options.

    Returns:
        dbt's exit code.

    """
    result = _show(arguments, variables, texts, project or user_project(), manifest)
    return 0 if result.success else 1


def parse() -> Manifest:
    """Let dbt parse the project, without vars, for runs of this process.

    Raises:
        DatabaseError: it can't be parsed; dbt has said why.

    """
    result = _show(["parse"], None, None, user_project(), None)
    if not result.success:
        raise DatabaseError("dbt can't parse the project")
    return result.result


def _show(
    arguments: Sequence[str],
    variables: Mapping[str, object] | None,
    texts: Callable[[Pieces], None] | None,
    project: Path,
    manifest: Manifest | None,
) -> Any:
    """Call dbt and show how far it is; return its dbtRunnerResult."""
    connect().close()  # before a quarter of a minute of parsing
    with Display(texts) as display:
        result = _invoke([display.event], arguments, variables, project, manifest)
        if result.exception and not display.said:
            display.write(str(result.exception))
    return result


def query(
    text: str, limit: int, variables: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """The rows of a query with Jinja in it, by `dbt show`."""
    errors = []

    def note(event: EventMsg) -> None:
        if event.info.level == "error":
            errors.append(event.info.msg)

    command = ["--quiet", "show", "--inline", text, "--limit", str(limit)]
    command += ["--output", "json"]
    result = _invoke([note], command, variables, user_project())
    if not result.success:
        raise DatabaseError("\n".join(errors) or str(result.exception))
    table = result.result.results[0].agate_table
    return [dict(zip(table.column_names, row, strict=True)) for row in table.rows]
