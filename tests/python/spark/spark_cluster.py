"""Sessions of Spark for the tests, and a cluster on loopback."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession

from dbt_nn.command_line import PROJECT
from dbt_nn.spark.watchdog import PREFIX

CONFIGURATION = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.session.timeZone": "UTC",
}


def require_java() -> None:
    """Skip without Java; with REQUIRE_JAVA=1, as in CI, fail instead."""
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java") or (home and (Path(home) / "bin" / "java").exists()):
        return
    reason = "Spark needs Java: apt-get install openjdk-17-jre-headless"
    if os.environ.get("REQUIRE_JAVA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def local_session(folder: Path, **configuration: str) -> Iterator[SparkSession]:
    """Two workers in this process's JVM."""
    require_java()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").appName("dbt_nn tests")
    settings = {**CONFIGURATION, "spark.sql.warehouse.dir": str(folder / "warehouse")}
    for name, value in {**settings, **configuration}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    try:
        yield session
    finally:
        session.stop()


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder in which all servers are that this process, or what it starts, has.

    It is short, for the socket's path, and the user that a server runs as can pass.
    """
    folder = Path(tempfile.mkdtemp(prefix="spark-"))
    folder.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_NN_SPARK_FOLDER", str(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def leftovers() -> tuple[list[str], list[str]]:
    """Servers' folders in there, and the command lines of their processes."""
    folder = os.environ["DBT_NN_SPARK_FOLDER"]
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if ("dbt_nn.spark.watchdog" in line and folder in line) or _data(line):
            lines.append(" ".join(line))
    return [str(path) for path in Path(folder).iterdir()], lines


def _data(command: list[str]) -> bool:
    """Whether that is a server of ours."""
    folder = f"{os.environ['DBT_NN_SPARK_FOLDER']}/{PREFIX}"
    return len(command) == 3 and command[1] == "-D" and command[2].startswith(folder)


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


# --- A cluster on loopback ----------------------------------------------------------


@dataclass
class Cluster:
    """A standalone master and workers of one core each, from pyspark's wheel."""

    folder: Path
    master: Popen[bytes] | None = None
    url: str = ""
    workers: list[Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Cluster:
        require_java()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.master = self._start(
            "org.apache.spark.deploy.master.Master", "--port", "0", log="master"
        )
        wait_until(self._find_url)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, self.master]:
            process.terminate()
        for process in [*self.workers, self.master]:
            process.wait(60)

    def _start(self, name: str, *arguments: str, log: str) -> Popen[bytes]:
        home = Path(find_spec("pyspark").origin).parent
        with (self.folder / f"{log}.log").open("wb") as output:
            return Popen(
                [str(home / "bin" / "spark-class"), name, "--host", "127.0.0.1"]
                + ["--webui-port", "0", *arguments],
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env={
                    **os.environ,
                    "SPARK_HOME": str(home),
                    "SPARK_LOCAL_IP": "127.0.0.1",
                    "SPARK_LOCAL_DIRS": str(self.folder / "local"),
                    "SPARK_NO_DAEMONIZE": "1",
                },
            )

    def _find_url(self) -> bool:
        assert self.master.poll() is None, self._log("master")
        found = re.search(r"spark://127\.0\.0\.1:\d+", self._log("master"))
        self.url = found[0] if found else ""
        return bool(found)

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def add_worker(self) -> Popen[bytes]:
        """One more worker; returns once the master has it."""
        name = f"worker-{len(self.workers)}"
        process = self._start(
            "org.apache.spark.deploy.worker.Worker",
            *("--cores", "1", "--memory", "1g", "--work-dir", str(self.folder / name)),
            self.url,
            log=name,
        )
        self.workers.append(process)
        wait_until(lambda: "Successfully registered" in self._log(name))
        return process

    def kill_worker(self) -> None:
        """Kill -9 of a worker that lives, the first one."""
        process = next(worker for worker in self.workers if worker.poll() is None)
        process.kill()
        process.wait()

    def run(self, *arguments: str, log: Path) -> Popen[bytes]:
        """Begin `dbt-nn spark run` on the cluster."""
        settings = {**CONFIGURATION, "spark.executor.memory": "512m"}
        conf = [f"--conf={name}={value}" for name, value in settings.items()]
        with log.open("wb") as output:
            return Popen(
                [sys.executable, str(PROJECT / "scripts" / "spark.py"), "run"]
                + ["--master", self.url, *conf, *arguments],
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                cwd=self.folder,
            )

    def session(self, **configuration: str) -> SparkSession:
        """A session of this process on the cluster."""
        os.environ["PYSPARK_PYTHON"] = sys.executable
        builder = SparkSession.builder.master(self.url).appName("dbt_nn tests")
        settings = {
            **CONFIGURATION,
            "spark.executor.memory": "512m",
            "spark.sql.warehouse.dir": str(self.folder / "warehouse"),
            **configuration,
        }
        for name, value in settings.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        return session


def postmasters() -> list[psutil.Process]:
    """The executors' servers that run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if _data(process.info["cmdline"] or []):
            found.append(process)
    return found


def memory_of(server: psutil.Process) -> int:
    """Bytes that a server takes: what it shares is counted once."""
    total = 0
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def processor_seconds(servers: list[psutil.Process]) -> float:
    """What the processes of servers have used until now."""
    seconds = 0.0
    for server in servers:
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.Error):
                used = process.cpu_times()
                seconds += used.user + used.system
    return seconds
