"""Remove everything that was set up here: `make distclean`.

    python scripts/uninstall.py          # says what, and asks
    python scripts/uninstall.py --yes

stops the embedded server and removes its data, what dbt, Python, Spark and the scripts
wrote, and the virtual environment. It leaves what is yours: other files in
pictures/, a profiles.yml that you have edited, a server of your own, and the
checkpoints in the Hugging Face Hub's cache.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import psutil

from dbt_nn import embedded, server
from dbt_nn.cli import command
from dbt_nn.command_line import PROJECT
from dbt_nn.database import EXAMPLE, DatabaseError
from dbt_nn.pictures import is_ours

# As in .gitignore: below the project's folder, and those that are there once.
ANYWHERE = ("target", "logs", "dbt_packages", "package-lock.yml", "__pycache__")
SPARK = ("spark-warehouse", "metastore_db", "derby.log")
TOOLS = (".pytest_cache", ".ruff_cache", ".hypothesis")
ONCE = ("output", ".cache", ".user.yml")
VENV = PROJECT / ".venv"
PICTURES = PROJECT / "pictures"


def wanted() -> Iterator[tuple[Path, str]]:
    """What is to be removed, and what it is."""
    home = embedded_home()
    if home is not None:
        yield home, "the embedded server with all its data"
    yield from ((path, "") for path in written())
    if PICTURES.is_dir():
        yield from ((path, "") for path in PICTURES.iterdir() if ours(path))
    profile = PROJECT / "profiles.yml"
    if profile.exists() and not edited(profile):
        yield profile, "a copy of profiles.example.yml"
    if VENV.exists():
        yield VENV, "the Python packages"


def ours(path: Path) -> bool:
    """Whether a picture is one that a network of this project wrote."""
    networks = [folder.name for folder in (PROJECT / "models").iterdir()]
    return any(is_ours(path, network) for network in networks)


def written() -> Iterator[Path]:
    """What dbt, Python, Spark and the scripts wrote."""
    for name in (*ONCE, *TOOLS):
        if (PROJECT / name).exists():
            yield PROJECT / name
    for folder, folders, files in os.walk(PROJECT):
        for name in (*ANYWHERE, *SPARK):
            if name in folders or name in files:
                yield Path(folder) / name
        folders[:] = [
            name
            for name in folders
            if name not in (*ANYWHERE, *SPARK, *ONCE, *TOOLS)
            and not (Path(folder) == PROJECT and name.startswith("."))
        ]


def embedded_home() -> Path | None:
    """The embedded server's folder, if there is one."""
    with contextlib.suppress(OSError):
        for home in (embedded.wanted_home(), embedded.fallback_home()):
            if (home / embedded.MARKER).exists():
                return home
    return None


def programs_are_used() -> bool:
    """Whether others need the copies of PostgreSQL's programs, which root has."""
    if list(embedded.FALLBACK.glob(f"*/{embedded.MARKER}")):
        return True
    running = (process.info["exe"] for process in psutil.process_iter(["exe"]))
    return any(Path(exe).is_relative_to(embedded.FALLBACK) for exe in running if exe)


def edited(profile: Path) -> bool:
    """Whether a profile differs from the example in more than the line that we keep."""
    return server.without_host(profile) != server.without_host(EXAMPLE)


def size(path: Path) -> int:
    """Bytes of a file, or of a folder with all that is in it."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    if not path.is_dir():
        total += path.lstat().st_size
    return total


def shown(path: Path) -> str:
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def agreed() -> bool:
    """Ask."""
    if not sys.stdin.isatty():
        raise DatabaseError(
            "nothing is removed: no terminal to ask in; to remove it all the same, "
            "`make distclean YES=1`"
        )
    try:
        answer = input("Remove all of it? [y/N] ")
    except EOFError:
        answer = ""
    return re.fullmatch(r"\s*y(es)?\s*", answer, re.IGNORECASE) is not None


@command(__doc__)
@click.option("--yes", is_flag=True, help="Do not ask.")
def main(yes: bool) -> int:
    """Carry out the command line."""
    found = list(wanted())
    profile = PROJECT / "profiles.yml"
    if profile.exists() and edited(profile):
        print("stays: profiles.yml, which you have edited")
    if not found:
        print("nothing to remove")
        return 0
    total = 0
    for path, what in found:
        total += size(path)
        print(f"{size(path) / 1e6:9,.1f} MB  {shown(path)}{what and f' ({what})'}")
    print(f"{total / 1e6:9,.1f} MB  in all", flush=True)
    if not yes and not agreed():
        print("nothing was removed")
        return 1
    for path, _ in found:
        if path == embedded_home():
            os.environ["DBT_NN_TARGET"] = "embedded"
            server.delete()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not programs_are_used():
        shutil.rmtree(embedded.FALLBACK, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds pictures of the user's
        PICTURES.rmdir()
    print(f"removed {total / 1e6:,.1f} MB")
    if os.geteuid() == 0 and embedded.own_user_exists():
        print(
            f"stays: the system user {embedded.NAME}, whom other copies of this "
            f"project may need (`userdel {embedded.NAME}`)"
        )
    return 0
