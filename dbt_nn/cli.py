"""Neural networks as dbt models in PostgreSQL: the command `dbt-nn`.

A first run, in a folder of its own:

    dbt-nn init letters && cd letters
    dbt-nn server start
    dbt-nn load
    dbt deps && dbt seed && dbt run --select gpt2
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import click

from dbt_nn import __version__
from dbt_nn.command_line import ExpectedError

# Each command: its module and the name there, and a line of help. A module is
# imported when its command is called: numpy, dbt and the rest take their time.
COMMANDS = {
    "init": ("dbt_nn.init:main", "make a dbt project that runs"),
    "server": ("dbt_nn.server:main", "start, stop and check the PostgreSQL"),
    "load": ("dbt_nn.load:main", "load a checkpoint into the database"),
    "list": ("dbt_nn.load:list_checkpoints", "list the checkpoints that are loaded"),
    "generate": ("dbt_nn.generate:main", "write a network's dbt models"),
    "complete": ("dbt_nn.complete:main", "complete a prompt"),
    "draw": ("dbt_nn.draw:main", "draw images"),
    "look": ("dbt_nn.look:main", "look inside a network, as a table and as a page"),
    "search": ("dbt_nn.search:main", "find the texts that are nearest to a query"),
    "pictures": ("dbt_nn.pictures:main", "write drawn images as PNG and GIF"),
    "spark": ("dbt_nn.spark_command:main", "run a network on a Spark cluster"),
    "check": ("dbt_nn.check:main", "compare every layer with a reference"),
}


class Command(click.Command):
    """A command whose help is its module's docstring as it is written."""

    def format_help_text(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        write_text(self.help or "", formatter)


class Group(click.Group):
    """Commands with such help."""

    command_class = Command
    group_class = type
    format_help_text = Command.format_help_text


class LazyGroup(Group):
    """The commands of COMMANDS, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def write_text(text: str, formatter: click.HelpFormatter) -> None:
    """Write help as it is, indented as click does."""
    formatter.write_paragraph()
    formatter.write(textwrap.indent(text.strip(), "  ") + "\n")


def command(text: str | None) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command, with `text` as its help."""
    settings = {"help_option_names": ["-h", "--help"]}
    return click.command(cls=Command, help=text, context_settings=settings)


def group(text: str | None) -> Callable[[Callable[..., Any]], Group]:
    """Make a function a group of commands, with `text` as its help."""
    settings = {"help_option_names": ["-h", "--help"]}
    return click.group(cls=Group, help=text, context_settings=settings)


checkpoint_option = click.option(
    "--checkpoint",
    metavar="SCHEMA",
    default=lambda: os.environ.get("CHECKPOINT") or None,
    help="Schema of a loaded checkpoint (default: the environment's CHECKPOINT, or "
    "the project's var).",
)


def invoke(called: click.Command, arguments: list[str], name: str | None = None) -> int:
    """Carry out a command line; what is wrong with it, or expected, is a message.

    Args:
        called: the command.
        arguments: without the command's name.
        name: of the command, for its help.

    Returns:
        The exit status.

    """
    try:
        with called.make_context(name or called.name, list(arguments)) as context:
            return called.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ExpectedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


@click.group(
    cls=LazyGroup,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="dbt-nn", message="%(prog)s %(version)s")
def main() -> None:
    """Hand over to a command."""
