"""What is in a server's way is said by its check, by the loader and by dbt alike."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg2
import pytest

from conftest import Dbt, OwnServer, run_script
from dbt_nn import embedded
from runs import TWIN, copy_bare_project

SCHEMA = "test_requirements"
# a layer that nothing has to build: all is refused before it
LAYER = """
{{ config(
    materialized='layer',
    meta={'network': 'small', 'family': 'text', 'place': ['x']},
) }}
select 1 as x
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with two models: a network's, and one that takes its time."""
    folder = copy_bare_project(tmp_path_factory.mktemp("project"))
    models = folder / "models"
    models.mkdir()
    (models / "small.sql").write_text(LAYER, encoding="utf-8")
    slow = "{{ config(materialized='table') }} select pg_sleep(60)::text as x"
    (models / "slow.sql").write_text(slow, encoding="utf-8")
    return folder


@dataclass
class Said:
    """What each command says of a server."""

    check: str
    loader: str
    dbt: str

    def __contains__(self, sentence: str) -> bool:
        """Whether all say it."""
        return all(sentence in said for said in (self.check, self.loader, self.dbt))


@pytest.fixture
def said(dbt: Dbt, project: Path) -> Callable[[dict[str, str]], Said]:
    """A function that runs all three, which have to fail without a traceback."""

    def run(environment: dict[str, str]) -> Said:
        environment = {"DBT_NN_SCHEMA": SCHEMA, **environment}
        script = {**os.environ, **environment}
        done = [
            run_script("server.py", "check", env=script),
            run_script("load_checkpoint.py", str(TWIN), "--name", "never", env=script),
            dbt(
                *("run", "--project-dir", str(project), "--select", "small"),
                env={**environment, "DBT_TARGET_PATH": str(project / "target")},
                check=False,
            ),
        ]
        texts = [one.stdout + (one.stderr or "") for one in done]
        for one, text in zip(done, texts, strict=True):
            assert one.returncode == 1, text
            assert "Traceback" not in text
        return Said(*texts)

    return run


@pytest.fixture
def admin(own_server: OwnServer) -> Callable[..., None]:
    """A function that runs statements as the superuser, each on its own."""

    def run(*statements: str, database: str = "tests") -> None:
        place = own_server.admin | {"dbname": database}
        with contextlib.closing(psycopg2.connect(**place)) as connection:
            connection.autocommit = True
            for statement in statements:
                connection.cursor().execute(statement)

    return run


@pytest.mark.long
def test_pgvector_out_of_sight(
    own_server: OwnServer,
    admin: Callable[..., None],
    said: Callable[[dict[str, str]], Said],
) -> None:
    """In a schema that the role may not use, then in none that it looks into."""
    admin(
        "create schema extensions",
        "alter extension vector set schema extensions",
    )
    try:
        now = said(own_server.environment)
        assert "run `grant usage on schema extensions to tester;`" in now, now
        admin("grant usage on schema extensions to tester")
        now = said(own_server.environment)
        advice = '`alter role tester set search_path = "$user", public, extensions;`'
        assert f"the search_path of tester lacks: run {advice}" in now, now
        admin(advice.strip("`"))
        for environment in (
            own_server.environment,
            own_server.environment | {"DBT_NN_SEARCH_PATH": "public, extensions"},
        ):
            checked = run_script(
                "server.py", "check", env={**os.environ, **environment}
            )
            assert "the server will do" in checked.stdout, checked.stderr
            admin("alter role tester reset search_path")
    finally:
        admin(
            "alter role tester reset search_path",
            "alter extension vector set schema public",
            "drop schema extensions",
        )


@pytest.mark.long
def test_another_encoding_and_read_only(
    own_server: OwnServer,
    admin: Callable[..., None],
    said: Callable[[dict[str, str]], Said],
) -> None:
    """The first that dbt comes to is pgvector, then the encoding, then the rest."""
    admin(
        "create database latin owner tester encoding 'LATIN1' template template0",
        "alter role tester set default_transaction_read_only = on",
    )
    try:
        admin(f"create schema {SCHEMA}", database="latin")
        environment = own_server.environment | {"DBT_NN_DATABASE": "latin"}
        now = said(environment)
        assert "pgvector is on the server but not in this database: run" in now
        admin("create extension vector", database="latin")
        now = said(environment)
        assert "the encoding of the database latin is LATIN1: use one that was" in now
        read_only = "default_transaction_read_only is on for the role tester: run"
        assert read_only in now.check
        assert read_only in now.loader
        # dbt makes its schema before anyone is asked, which says less
        admin(f"create schema if not exists {SCHEMA} authorization tester")
        assert read_only in said(own_server.environment)
    finally:
        admin(
            "drop database latin with (force)",
            f"drop schema if exists {SCHEMA} cascade",
            "alter role tester reset default_transaction_read_only",
        )


@pytest.fixture
def standby(
    own_server: OwnServer, isolated_environment: Path
) -> Iterator[dict[str, str]]:
    """The environment of a hot standby: a stopped server's copy of itself."""
    home = isolated_environment / "own-standby"
    home.mkdir(mode=0o700)
    place = embedded.Place(home, own_server.place.binaries, own_server.place.user)
    if place.user is not None:
        shutil.chown(home, place.user)
    data = ("--pgdata", str(place.data))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off "
    options += f"-c unix_socket_directories={home}"
    start = ("pg_ctl", *data, "--wait", f"--log={place.log}", f"--options={options}")
    done = place.run(
        "initdb", *data, "--auth=trust", "--username=tester", "--no-sync",
        "--encoding=UTF8", "--locale=C",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    try:
        assert place.run(*start, "start").returncode == 0, place.log.read_text()
        server = {"host": "127.0.0.1", "port": port, "user": "tester"}
        with contextlib.closing(
            psycopg2.connect(**server, dbname="postgres")
        ) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("create extension vector")
            cursor.execute(f"create schema {SCHEMA}")
        assert place.run("pg_ctl", *data, "--mode=fast", "stop").returncode == 0
        signal_file = place.data / "standby.signal"
        signal_file.touch()
        if place.user is not None:
            shutil.chown(signal_file, place.user)
        assert place.run(*start, "start").returncode == 0, place.log.read_text()
        yield {
            **own_server.environment,
            "DBT_NN_PORT": str(port),
            "DBT_NN_DATABASE": "postgres",
        }
    finally:
        place.run("pg_ctl", *data, "--mode=immediate", "stop")


@pytest.mark.long
def test_a_standby(
    standby: dict[str, str], said: Callable[[dict[str, str]], Said]
) -> None:
    now = said(standby)
    assert "the server is a standby, which is read-only: use its primary" in now, now


@pytest.mark.long
def test_a_timeout_is_named(
    dbt: Dbt, own_server: OwnServer, admin: Callable[..., None], project: Path
) -> None:
    """Where dbt says no more than that a statement was cancelled."""
    admin("alter role tester set statement_timeout = '5s'")
    cure = "`alter role tester set statement_timeout = 0;`"
    environment = {**own_server.environment, "DBT_NN_SCHEMA": SCHEMA}
    try:
        checked = run_script("server.py", "check", env={**os.environ, **environment})
        assert "warning: statement_timeout is 5s" in checked.stdout
        assert cure in checked.stdout
        done = dbt(
            *("run", "--project-dir", str(project), "--select", "slow"),
            env={**environment, "DBT_TARGET_PATH": str(project / "target")},
            check=False,
        )
        assert done.returncode == 1
        assert "canceling statement due to statement timeout" in done.stdout
        named = "the setting statement_timeout (5s for the role tester) stopped slow"
        assert named in done.stdout
        assert cure in done.stdout
    finally:
        admin(
            "alter role tester reset statement_timeout",
            f"drop schema if exists {SCHEMA} cascade",
        )


# --- PgBouncer ----------------------------------------------------------------


@pytest.fixture
def pool(
    own_server: OwnServer, isolated_environment: Path
) -> Iterator[Callable[[str], dict[str, str]]]:
    """A function that starts PgBouncer in a mode, and gives its environment.

    Its files are not in pytest's folder, which every pytest that starts closes to
    others: PgBouncer, too, runs as another than root.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("REQUIRE_PGBOUNCER"):
            pytest.fail("PgBouncer is not installed")
        pytest.skip("PgBouncer is not installed")
    environment = own_server.environment
    user, password = environment["DBT_NN_USER"], environment["DBT_NN_PASSWORD"]
    with contextlib.ExitStack() as started:

        def start(mode: str) -> dict[str, str]:
            # another process may take the port that was free
            for _ in range(3):
                with tempfile.TemporaryFile() as log:
                    port = attempt(mode, log)
                    if port is not None:
                        return {**environment, "DBT_NN_PORT": str(port)}
                    log.seek(0)
                    said = log.read().decode(errors="replace")
            pytest.fail(f"PgBouncer does not answer:\n{said}")

        def attempt(mode: str, log: IO[bytes]) -> int | None:
            """Start it on a free port; None if it ended or does not answer."""
            folder = Path(tempfile.mkdtemp(prefix="pool-", dir=isolated_environment))
            folder.chmod(0o711)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            secret = folder / "users"
            secret.write_text(f'"{user}" "{password}"\n', encoding="ascii")
            settings = folder / "pgbouncer.ini"
            settings.write_text(
                "[databases]\n"
                f"* = host=127.0.0.1 port={environment['DBT_NN_PORT']}\n"
                "[pgbouncer]\n"
                f"pool_mode = {mode}\n"
                f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
                f"auth_type = scram-sha-256\nauth_file = {secret}\n",
                encoding="ascii",
            )
            if own_server.place.user is not None:
                shutil.chown(secret, own_server.place.user)
                shutil.chown(settings, own_server.place.user)
            process = started.enter_context(
                subprocess.Popen(
                    [program, str(settings)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    **embedded.as_user(own_server.place.user),
                )
            )
            started.callback(process.send_signal, signal.SIGTERM)
            for _ in range(300):
                if process.poll() is not None:
                    return None
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        return port
                time.sleep(0.1)
            return None

        yield start


@pytest.mark.long
def test_pools(
    dbt: Dbt,
    project: Path,
    admin: Callable[..., None],
    pool: Callable[[str], dict[str, str]],
) -> None:
    """Transaction mode is refused before the first layer; session mode will do."""
    refusal = "sessions take turns with the server's processes"
    shared, own = pool("transaction"), pool("session")
    checked = run_script("server.py", "check", env={**os.environ, **shared})
    assert checked.returncode == 1
    assert refusal in checked.stderr
    checked = run_script("server.py", "check", env={**os.environ, **own})
    assert "the server will do" in checked.stdout, checked.stderr
    try:
        done = dbt(
            *("run", "--project-dir", str(project), "--select", "small"),
            env={
                **shared,
                "DBT_NN_SCHEMA": SCHEMA,
                "DBT_TARGET_PATH": str(project / "target"),
            },
            check=False,
        )
        assert done.returncode == 1
        assert refusal in done.stdout
    finally:
        admin(f"drop schema if exists {SCHEMA} cascade")
