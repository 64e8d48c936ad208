"""A PostgreSQL of this process, which ends with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg2

from dbt_nn import embedded
from dbt_nn.checkpoint.folder import open_checkpoint
from dbt_nn.hub import fetch
from dbt_nn.requirements import MIB
from dbt_nn.spark.plan import DATABASE, Source, SparkError
from dbt_nn.writer import load

# Of shared_buffers beside the checkpoint: the layers of a batch, twice what
# batch_memory gives by default, and the tables of a batch's rows.
WORK_MIB = 128


def wanted_buffers(source: Source) -> str:
    """The shared_buffers for a checkpoint: its tables, and a batch."""
    return f"{source.bytes * 9 // 8 // MIB + WORK_MIB}MB"


class Server:
    """The server, started; close() ends it, and so does the end of this process."""

    def __init__(self, shared_buffers: str):
        """Start it in a new folder on local disk (DBT_NN_SPARK_FOLDER, or /tmp).

        Raises:
            SparkError: it does not start.

        """
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        folder = os.environ.get("DBT_NN_SPARK_FOLDER") or tempfile.gettempdir()
        self.watchdog = subprocess.Popen(
            [sys.executable, "-m", "dbt_nn.spark.watchdog", folder, shared_buffers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        answer = json.loads(self.watchdog.stdout.readline() or '{"error": "no answer"}')
        if "error" in answer:
            self.close()
            # on one line: Spark shows an executor's error as lines of a trace
            said = " ".join(answer["error"].split())
            raise SparkError(f"an executor's PostgreSQL did not start: {said}")
        self.socket, self.process = answer["socket"], answer["pid"]
        self.home = answer["home"]

    def connect(self) -> psycopg2.extensions.connection:
        """A connection that commits each statement."""
        connection = psycopg2.connect(
            host=self.socket,
            port=embedded.PORT,
            user=embedded.NAME,
            dbname=DATABASE,
            client_encoding="UTF8",
        )
        connection.autocommit = True
        return connection

    def load(self, source: Source) -> None:
        """Load a checkpoint.

        Raises:
            CheckpointError: it is not there or not whole.
            SparkError: it is another one than the driver's.

        """
        with open_checkpoint(fetch(source.source, source.revision)) as checkpoint:
            if checkpoint.digest != source.digest:
                raise SparkError(
                    f"the executor finds another checkpoint in {source.source} than "
                    "the driver: give both the same"
                )
            connection = self.connect()
            try:
                load(connection, checkpoint, source.name, source=source.source)
            finally:
                connection.close()

    def close(self) -> None:
        """End it, and wait until its folder is gone."""
        for stream in (self.watchdog.stdin, self.watchdog.stdout):
            with suppress(OSError):
                stream.close()
        with suppress(ChildProcessError):
            self.watchdog.wait()


def with_server(
    source: Source, shared_buffers: str | None, made: Callable[[Server], None]
) -> Server:
    """A server with the checkpoint, and with what `made` makes in it."""
    server = Server(shared_buffers or wanted_buffers(source))
    try:
        server.load(source)
        made(server)
    except BaseException:
        server.close()
        raise
    return server
