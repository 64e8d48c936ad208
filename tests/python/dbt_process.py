"""dbt in a process of its own, forked from one that has imported dbt already.

To import dbt takes longer than much of what the tests do with it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dbt.cli.main import cli

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dbt.cli.main", "dbt.adapters.postgres"])


def run_dbt(
    arguments: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run dbt as its command does.

    Args:
        arguments: of the command line.
        folder: where it runs.
        environment: all of it.
        timeout: seconds; subprocess.TimeoutExpired after that.

    Returns:
        The process that has ended, with stderr in its stdout.

    """
    command = ["dbt", *arguments]
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        process = _CONTEXT.Process(
            target=_main, args=(command, folder, environment, output.name)
        )
        process.start()
        process.join(timeout)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        process.close()
        return subprocess.CompletedProcess(command, code, output.read())


def _main(
    command: list[str], folder: Path, environment: dict[str, str], output: str
) -> None:
    with open(output, "ab", buffering=0) as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    cli()
