"""How every command here begins, fails and ends.

Whatever is expected to go wrong ends in one message that says what to do: a
package that is missing because another Python was called, a server that is away,
Ctrl-C at any moment, a pipe that is closed, a terminal that is not UTF-8. Only a
fault of our own shows a traceback. This module needs nothing but the standard
library; a script names its module to `run_command`, which imports it only then.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import importlib
import os
import sys
from functools import partial
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
# A wheel brings the dbt package inside the Python package, a clone holds both.
IS_CLONE = (HERE.parent / "dbt_project.yml").is_file()
PROJECT = HERE.parent if IS_CLONE else HERE / "dbt_package"
SCRIPTS = PROJECT / "scripts"
INTERRUPTED = 130  # exit status, as of a shell


def _has_package(folder: Path) -> bool:
    """Whether a dbt project has this very copy of the dbt package."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if (folder / "dbt_packages" / "dbt_nn").resolve() == PROJECT:
            return True
        # before `dbt deps`
        named = (folder / "packages.yml").read_text(encoding="utf-8")
        return str(PROJECT) in named
    return False


def user_project() -> Path:
    """Folder of the dbt project that runs: this one, or one that has it as a package.

    As for dbt, that is the current folder, or what DBT_PROJECT_DIR says.
    """
    with contextlib.suppress(OSError):
        folder = Path(os.environ.get("DBT_PROJECT_DIR") or Path.cwd()).resolve()
        if not IS_CLONE or _has_package(folder):
            return folder
    return PROJECT


def shown_command(name: str, script: str) -> str:
    """How a command is called here: `dbt-nn load`, or by its script in the package."""
    called = _script()
    if user_project() != PROJECT and called and called.name != "cli.py":
        return f"python dbt_packages/dbt_nn/scripts/{script}.py"
    return f"dbt-nn {name}"


def start_command() -> str:
    """What starts the embedded server."""
    if IS_CLONE and user_project() == PROJECT:
        return "make server"
    return f"{shown_command('server', 'server')} start"


class ExpectedError(Exception):
    """An expected failure, whose message tells the user what to do."""


def run_command(module: str, name: str | None = None) -> None:
    """Import a command's module and carry out the command line with its `main`.

    Args:
        module: its full name.
        name: of the command in its help (default: of the script).

    """
    _begin(module)
    from dbt_nn.cli import invoke

    command = importlib.import_module(module).main
    sys.exit(invoke(command, sys.argv[1:], name or Path(sys.argv[0]).name))


def _script() -> Path | None:
    """The script of ours that Python was called with."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    script = Path(path).resolve() if path else None
    return script if script and script.parent == SCRIPTS else None


def _flush() -> None:
    """Write what is left, or drop it where nobody reads any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _missing_package(error: ModuleNotFoundError) -> str:
    """Say how to get a package."""
    script = _script()
    command = f"scripts/{script.name}" if script else "-m dbt_nn"
    if not IS_CLONE:
        cure = "pip install --force-reinstall dbt-nn"
    elif user_project() != PROJECT:
        cure = "pip install -r dbt_packages/dbt_nn/requirements.lock"
    elif Path(sys.prefix).resolve() != PROJECT / ".venv":
        cure = f"run `make setup`, and then .venv/bin/python {command}"
    else:
        cure = "`make setup-test` installs what tests, benchmarks and training need"
    return f"{sys.executable} lacks the package {error.name}: {cure}"


def _documentation(module: str) -> str:
    """A module's docstring, without importing it."""
    source = HERE.parent.joinpath(*module.split(".")).with_suffix(".py")
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def _end(
    module: str,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Turn what ended the command into a message and an exit status."""
    code, message = 1, ""
    if isinstance(error, KeyboardInterrupt):
        code, message = INTERRUPTED, "interrupted"
    elif isinstance(error, BrokenPipeError):  # `... | head`
        code = 0
    elif isinstance(error, ExpectedError):
        message = f"error: {error}"
    elif isinstance(error, ModuleNotFoundError) and not _is_ours(error.name):
        message = f"error: {_missing_package(error)}"
        if {"-h", "--help"} & {*sys.argv}:  # what can be said without the package
            code, message = 0, f"{_documentation(module)}\n\n({message})"
    elif isinstance(error, OSError) and error.strerror:
        message = f"error: {error.filename or module}: {error.strerror}"
    elif kind.__module__.startswith("psycopg2"):
        message = f"error: the database said: {str(error).strip()}"
    else:
        sys.__excepthook__(kind, error, trace)
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


def _is_ours(name: str | None) -> bool:
    """Whether a module is of this project, so that its lack is a fault."""
    return (name or "").partition(".")[0] == "dbt_nn"


def _begin(module: str) -> None:
    """Set up a process that is one of the commands."""
    sys.excepthook = partial(_end, module)
    atexit.register(_flush)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # what its encoding lacks is written as \\u2026
            stream.reconfigure(errors="backslashreplace")
