"""Where a run writes its results: a folder of Parquet, or a table.

Each task of Spark adds a file of its own when it is done, so that what is written
stays, whatever ends the run later. Rows that are not asked for any more, or were
replaced, go at the end of a run: the others are written anew beside, and take the place
of all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dbt_nn.spark.plan import SparkError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# What a task has written is there at once: Hadoop's first algorithm moves all files
# when the last task is done, and a driver that is killed before has written nothing.
COMMIT_EACH_TASK = {
    "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
}
NEXT = "__next"  # after the name, while rows are written anew
CLAIM = "__run"  # after the name, while a run is at work
BEAT_S = 1.0  # how often a run says that it is
DEAD_S = 10.0  # after which one that says nothing was killed


class Folder:
    """A folder of Parquet files, on any file system that Spark knows."""

    def __init__(self, spark: SparkSession, path: str):
        self.spark = spark
        self.name = path.rstrip("/")
        self.next = self.name + NEXT
        context = spark.sparkContext
        self.paths = context._jvm.org.apache.hadoop.fs
        self.files = self.paths.Path(self.name).getFileSystem(
            context._jsc.hadoopConfiguration()
        )

    @property
    def claim(self) -> str:
        """Path of the file that says that a run is at work."""
        return self.name + CLAIM

    def recover(self) -> None:
        """Finish what a run that was killed had begun.

        Rows that were written anew are whole once the old ones are removed.
        """
        # of a run that was killed: tasks that did not end
        self.files.delete(self.paths.Path(f"{self.name}/_temporary"), True)
        if self._exists(self.next):
            if self._exists(self.name):
                self.files.delete(self.paths.Path(self.next), True)
            else:
                self._rename()

    def read(self, schema: Any) -> DataFrame | None:
        """The results that are there."""
        if not self._exists(self.name):
            return None
        found = self.files.globStatus(self.paths.Path(f"{self.name}/*.parquet"))
        if not len(found):
            return None
        return self.spark.read.schema(schema).parquet(self.name)

    def columns(self) -> Sequence[str] | None:
        """Names of the columns of what is there."""
        found = self.files.globStatus(self.paths.Path(f"{self.name}/*.parquet"))
        if found is None or not len(found):
            return None
        return self.spark.read.parquet(self.name).columns

    def append(self, rows: DataFrame) -> None:
        """Add results, a file a task."""
        rows.write.mode("append").parquet(self.name)

    def replace(self, rows: DataFrame) -> None:
        """Put these in the place of all that are there."""
        rows.write.mode("overwrite").parquet(self.next)
        self.files.delete(self.paths.Path(self.name), True)
        self._rename()

    def _exists(self, path: str) -> bool:
        return self.files.exists(self.paths.Path(path))

    def _rename(self) -> None:
        self.files.rename(self.paths.Path(self.next), self.paths.Path(self.name))


class Table:
    """A table of the catalog, of Parquet where the run makes it."""

    def __init__(self, spark: SparkSession, name: str):
        self.spark = spark
        self.name = name
        self.next = name + NEXT

    @property
    def claim(self) -> str:
        """Path of the file that says that a run is at work, by the catalog's tables."""
        return f"{self.spark.conf.get('spark.sql.warehouse.dir')}/{self.name}{CLAIM}"

    def recover(self) -> None:
        """Finish what a run that was killed had begun."""
        if self.spark.catalog.tableExists(self.next):
            if self.spark.catalog.tableExists(self.name):
                self.spark.sql(f"drop table {self.next}")
            else:
                self._rename()

    def read(self, schema: Any) -> DataFrame | None:
        """The results that are there."""
        if not self.spark.catalog.tableExists(self.name):
            return None
        # files that a run which was killed had added are not in a list of before
        self.spark.catalog.refreshTable(self.name)
        return self.spark.table(self.name)

    def columns(self) -> Sequence[str] | None:
        """Names of the columns of what is there."""
        if not self.spark.catalog.tableExists(self.name):
            return None
        return self.spark.table(self.name).columns

    def append(self, rows: DataFrame) -> None:
        """Add results, a file a task."""
        rows.write.mode("append").saveAsTable(self.name)

    def replace(self, rows: DataFrame) -> None:
        """Put these in the place of all that are there."""
        rows.write.mode("overwrite").saveAsTable(self.next)
        self.spark.sql(f"drop table {self.name}")
        self._rename()

    def _rename(self) -> None:
        self.spark.sql(f"alter table {self.next} rename to {self.name}")


class Claim:
    """That one run at a time writes an output: a file beside it while one is at work.

    The run writes it anew every second. One that was killed leaves it, and it stays as
    it is. So it needs no clock that two drivers share, and no file system that locks.
    """

    def __init__(self, output: Folder | Table):
        context = output.spark.sparkContext
        self.output = output
        self.path = context._jvm.org.apache.hadoop.fs.Path(output.claim)
        self.files = self.path.getFileSystem(context._jsc.hadoopConfiguration())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        """Claim the output.

        Raises:
            SparkError: another run is at work.

        """
        begun, seen = time.monotonic(), self._written()
        while seen is not None and time.monotonic() - begun < DEAD_S:
            time.sleep(BEAT_S / 2)
            now = self._written()
            if now is not None and now != seen:
                raise self._taken()
            seen = now
        if seen is not None:
            self.files.delete(self.path, False)
        try:
            self._write(anew=False)
        except Exception:
            if self._written() is None:  # not to be written: what Spark says tells why
                raise
            raise self._taken() from None
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        # the driver may have lost its JVM
        with suppress(Exception):
            self.files.delete(self.path, False)

    def _taken(self) -> SparkError:
        return SparkError(
            f"another run is at work on {self.output.name}: wait until it is done, or "
            "choose another --output"
        )

    def _written(self) -> int | None:
        """When the file was written, in milliseconds; None where there is none."""
        if not self.files.exists(self.path):
            return None
        return int(self.files.getFileStatus(self.path).getModificationTime())

    def _write(self, *, anew: bool) -> None:
        self.files.create(self.path, anew).close()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            # one that fails is followed by the next
            with suppress(Exception):
                self._write(anew=True)


def is_table(name: str) -> bool:
    """Whether a name is a table's: it has a dot, and nothing that a path has."""
    parts = name.split(".")
    return (
        len(parts) > 1
        and parts[-1] != "parquet"
        and all(part.replace("_", "").strip("`").isalnum() for part in parts)
    )


def open_output(spark: SparkSession, name: str) -> Folder | Table:
    """A table or a folder."""
    return Table(spark, name) if is_table(name) else Folder(spark, name)


def open_input(spark: SparkSession, name: str) -> DataFrame:
    """The DataFrame of a table, or of a file or folder of Parquet."""
    return spark.table(name) if is_table(name) else spark.read.parquet(name)
