"""What a worker of Spark does: a PostgreSQL of its own computes the rows of its tasks.

The first task of a worker starts the server and loads the checkpoint; the next ones
find it there. It ends with the worker (watchdog.py). Where the server was killed, the
rows that it had are computed again by a new one; what else goes wrong is Spark's to
retry.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
import pyarrow as pa
from psycopg2 import sql

from dbt_nn.pictures import Drawing, png, read_frames
from dbt_nn.spark.plan import INPUT, ROWS, SCHEMA, Column, SparkError, Task
from dbt_nn.spark.prepare import Network, database_reason, search_path
from dbt_nn.spark.rows import Slice, comparable, insert, select_list, slices, to_batch
from dbt_nn.spark.server import Server, with_server

_NO_BATCH = (
    "select pg_advisory_unlock_all(), set_config('dbt_nn.batch', '', false), "
    "set_config('dbt_nn.batch_before', '', false)"
)


@dataclass(frozen=True)
class Job:
    """All that a task of Spark is given."""

    task: Task
    network: Network
    schema: pa.Schema  # of what it gives back
    memory: str | None = None  # shared_buffers of the server
    metrics: dict[str, Any] | None = None  # accumulators by name

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """What a server is made for."""
        return self.task.identity, self.network.ddl, self.memory

    def count(self, name: str, amount: float) -> None:
        """Add to a metric."""
        if self.metrics:
            self.metrics[name].add(amount)


class Engine:
    """The server of this process, with a network that is ready to compute."""

    def __init__(self, job: Job):
        """Start it.

        Raises:
            SparkError: it does not start, or finds another checkpoint.
            CheckpointError: the checkpoint is not within reach.

        """
        begun = time.monotonic()
        self.identity = job.identity
        self.server = with_server(
            job.task.source, job.memory, lambda server: _build(server, job.network)
        )
        self.connection = self.server.connect()
        with self.connection.cursor() as cursor:
            cursor.execute(search_path(job.network.schemas))
        job.count("servers", 1)
        job.count("start_seconds", time.monotonic() - begun)

    def close(self) -> None:
        """End the server."""
        with suppress(psycopg2.Error):
            self.connection.close()
        self.server.close()

    def compute(self, job: Job, given: Slice) -> list[list[Any]]:
        """The results of a slice's rows, in the order of the job's columns.

        Raises:
            psycopg2.Error: the server is gone, or refuses something.

        """
        with self.connection.cursor() as cursor:
            cursor.execute(_NO_BATCH)
            cursor.execute(
                f'truncate "{SCHEMA}"."{INPUT}", {", ".join(job.network.emptied)}'
            )
            insert(cursor, job.network.sent, given.rows)
            for step in job.network.steps:
                if step.how == "insert":
                    cursor.execute(f"insert into {step.relation}\n{step.statement}")
                elif step.how == "layer":
                    cursor.execute(f"select {step.statement}(all_places => true)")
                else:
                    _loop(cursor, step.statement)
            if job.task.kind == "draw":
                return _pictures(cursor, job)
            columns = select_list(job.network.results)
            cursor.execute(f'select {columns} from "{SCHEMA}"."{job.task.results}"')
            return [list(row) for row in cursor]


def _build(server: Server, network: Network) -> None:
    """Make the tables, functions and views of a network."""
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(network.statements)


def _loop(cursor: psycopg2.extensions.cursor, function: str) -> None:
    """All steps of a network's loop, as the materialization `generation` makes them.

    function: prefix of the loop's functions, quoted.
    """
    name = function.removesuffix('"')
    cursor.execute(f'select {name}begin"(1)')
    cursor.execute(f'select {name}forward"(true)')
    goes_on = True
    while goes_on:
        cursor.execute(f'select {name}step"()')
        (goes_on,) = cursor.fetchone()


def _pictures(cursor: psycopg2.extensions.cursor, job: Job) -> list[list[Any]]:
    """The images of a slice, each as a PNG with what it was drawn by."""
    network, names = job.task.network, [c.name for c in job.network.results]
    pixels = sql.Identifier(SCHEMA, f"{network}_pixels")
    told = [name for name in names if name not in ("png", "checkpoint")]
    cursor.execute(
        sql.SQL("select {} from {}").format(
            sql.SQL(", ").join(map(sql.Identifier, told)),
            sql.Identifier(SCHEMA, f"{network}_requests"),
        )
    )
    found = [dict(zip(told, row, strict=True)) for row in cursor]
    for row in found:
        row["checkpoint"], row["png"] = job.task.source.name, None
        if row["error"] is None:
            last = row["num_inference_steps"]
            drawing = Drawing(row["image_id"], last)
            read_frames(cursor, pixels, network, drawing, [last])
            row["png"] = png(drawing.picture)
    return [[row[name] for name in names] for row in found]


_engine: Engine | None = None


def _engine_of(job: Job) -> Engine:
    """The engine of this process, made anew for another network or checkpoint."""
    global _engine
    if _engine is None or _engine.identity != job.identity:
        _drop_engine()
        _engine = Engine(job)
    return _engine


def _drop_engine() -> None:
    global _engine
    if _engine is not None:
        _engine.close()
    _engine = None


def _computed(job: Job, given: Slice) -> list[list[Any]]:
    """The results of a slice; of a server that is gone the rows are computed once more.

    Raises:
        SparkError: the database refuses the rows, or was lost twice.

    """
    if not given.rows:
        return []
    for attempt in (1, 2):
        try:
            return _engine_of(job).compute(job, given)
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            _drop_engine()
            job.count("lost_servers", 1)
            if attempt == 2:
                raise SparkError(
                    "an executor's PostgreSQL was lost twice with the same rows, the "
                    f"first has the key {given.keys[0]!r}: {database_reason(error)}. "
                    "Is there memory enough for each core's server?"
                ) from None
        except psycopg2.Error as error:
            _drop_engine()
            raise SparkError(database_reason(error)) from None
        except BaseException:  # the task is ended: the loop may be anywhere
            _drop_engine()
            raise
    raise AssertionError


def _unread(job: Job, key: Any, problem: str) -> list[Any]:
    """The row of one that can't be read: its key and the error."""
    known = {
        job.task.result_key: key,
        "chunk": 0,
        "error": problem,
        "checkpoint": job.task.source.name,
    }
    return [known.get(column.name) for column in job.network.results]


def run(job: Job, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Compute a partition: what DataFrame.mapInArrow calls on an executor."""
    size = ROWS[job.task.kind]
    columns: tuple[Column, ...] = job.network.sent
    names = [column.name for column in job.network.results]
    key, error = names.index(job.task.result_key), names.index("error")
    for batch in batches:
        for given in slices(batch, columns, size):
            begun = time.monotonic()
            rows = _computed(job, given)
            rows += [_unread(job, *bad) for bad in given.bad]
            if given.digests:
                for row in rows:
                    row.append(given.digests[comparable(row[key])])
            job.count("rows", len(given.rows) + len(given.bad))
            job.count("errors", sum(row[error] is not None for row in rows))
            job.count("seconds", time.monotonic() - begun)
            yield to_batch(rows, job.schema)
