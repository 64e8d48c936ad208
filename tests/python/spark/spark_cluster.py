"""Sessions of Spark for the tests, and a cluster on loopback."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession

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


def leftovers() -> tuple[list[str], list[str]]:
    """Folders of executors' servers, and the command lines of their processes."""
    folders = [str(path) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*")]
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "dbt_nn.spark.watchdog" in line or f"/{PREFIX}" in line:
            lines.append(line)
    return folders, lines


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
