"""What figures depend on: the machine, and what else it does meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.project import Connection
from dbt_nn.database import PROJECT

Facts = dict[str, Any]


def machine(connection: Connection) -> Facts:
    """What stays the same from run to run: rows of other machines are not compared."""
    cursor = connection.cursor()
    cursor.execute(
        "select current_setting('server_version'), current_setting('shared_buffers'), "
        "(select extversion from pg_extension where extname = 'vector')"
    )
    postgres, shared_buffers, vector = cursor.fetchone()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "postgresql": postgres,
        "shared_buffers": shared_buffers,
        "pgvector": vector,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Its name, with the widest vectors that it has: names of virtual ones lack it."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = " ".join(value.split())
            elif key.strip() == "flags":
                flags = value
    for flag, words in (("avx512f", "AVX-512"), ("avx2", "AVX2")):
        if flag in flags.split():
            return f"{name} with {words}"
    return name


def commit() -> str:
    """The one that is measured."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


class Others:
    """The share of the processors' time that goes to other programs in a block.

    What the host gives to other machines is part of it.

    Attributes:
        share: None where it can't be told: not on Linux, or the server is elsewhere.

    """

    def __init__(self, connection: Connection) -> None:
        """Find the processes that are ours: this one's and the server's."""
        self.share: float | None = None
        self.ours = [psutil.Process()]
        try:
            session = psutil.Process(connection.info.backend_pid)
            if not psutil.LINUX or "postgres" not in session.name():
                self.ours = []
            else:
                self.ours.append(session.parent() or session)
        except psutil.Error:
            self.ours = []

    def seconds(self) -> tuple[float, float]:
        """Of the processors: all that passed, and what others took of it."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0)
        # a guest's time is part of user's
        passed = (
            sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
        )
        return passed, passed - idle - sum(map(tree_seconds, self.ours))

    def __enter__(self) -> Others:
        self.before = self.seconds()
        return self

    def __exit__(self, *_: object) -> None:
        passed, others = (
            now - then for now, then in zip(self.seconds(), self.before, strict=True)
        )
        if self.ours and passed:
            self.share = max(0.0, others / passed)


def tree_seconds(process: psutil.Process) -> float:
    """Seconds that a process has taken, with its descendants, ended ones too."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += sum(each.cpu_times()[:4])  # own and of children that have ended
    return total


@contextlib.contextmanager
def watched() -> Iterator[Facts]:
    """What a run says of itself; complete when the block has ended."""
    started, before = time.monotonic(), psutil.cpu_times()
    facts: Facts = {
        "commit": commit(),
        "started_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "load_before": round(os.getloadavg()[0], 2),
    }
    yield facts
    after = psutil.cpu_times()
    passed = sum(after) - sum(before)
    stolen = getattr(after, "steal", 0) - getattr(before, "steal", 0)
    facts |= {
        "load_after": round(os.getloadavg()[0], 2),
        # of the processors' time, by other machines of the same host
        "stolen": round(stolen / passed, 4) if passed else 0,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
