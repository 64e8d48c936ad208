"""dbt on this project, for the commands that run a network."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

import yaml
from dbt.cli.main import dbtRunner
from dbt_common.events.base_types import EventMsg
from tqdm import tqdm

from database import PROJECT, DatabaseError, profiles_path

THINNED_S = 10  # between two lines of a loop where no terminal shows them


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


def parse_options(texts: list[str]) -> dict[str, object]:
    """Options as arguments or, if there are none, from the environment's OPTIONS."""
    if not texts:
        try:
            texts = shlex.split(os.environ.get("OPTIONS", ""))
        except ValueError as error:
            raise DatabaseError(f"OPTIONS: {error}") from None
    return dict(parse_option(text) for text in texts)


def dbt(*arguments: str, thinned: bool = False, project: Path = PROJECT) -> int:
    """Run dbt in the project; show print(), errors and a progress bar only.

    Args:
        arguments: of the command line.
        thinned: of a loop's lines that print() makes, the newest takes the place
            of the one before on a terminal; elsewhere one in a while is printed.
        project: its folder.

    Returns:
        dbt's exit code.

    """
    held: list[str] = []  # the newest line of a loop, if it is not printed yet
    printed = -THINNED_S  # when the last one was

    with tqdm(unit="model", leave=False, disable=None) as bar:

        def write(line: str) -> None:
            bar.clear()
            # `… | head`, a full disk: dbt waits forever for a callback that raises
            with suppress(OSError, ValueError):
                print(line, flush=True)

        def release() -> None:
            while held:
                write(held.pop())

        def show(event: EventMsg) -> None:
            nonlocal printed
            kind, text = event.info.name, event.info.msg
            if kind == "PrintEvent" and thinned:
                held[:] = [text]
                if not bar.disable:
                    bar.bar_format = "{desc}"
                    bar.set_description_str(text)
                elif time.monotonic() - printed >= THINNED_S:
                    printed = time.monotonic()
                    release()
            elif isinstance(sys.exception(), KeyboardInterrupt):
                pass  # dbt's stack trace of it
            elif kind == "PrintEvent" or event.info.level == "error":
                release()
                write(text)
            elif kind == "LogStartLine":
                release()
                bar.bar_format = None
                bar.total = event.data.total
                bar.set_description(event.data.node_info.node_name, refresh=False)
                bar.update(event.data.index - bar.n)

        flags = ["--log-level", "none"]
        if not sys.stdout.isatty():
            flags.append("--no-use-colors")
        folder = [
            "--project-dir",
            str(project),
            "--profiles-dir",
            str(profiles_path().parent),
        ]
        runner = dbtRunner(callbacks=[show])
        result = runner.invoke([*flags, *arguments, *folder])
        release()
    if isinstance(result.exception, KeyboardInterrupt):
        raise result.exception
    return 0 if result.success else 1
