"""Run a network on a Spark cluster, for more rows than one machine computes.

    dbt-nn spark run --network minilm --input texts.parquet --output vectors
    dbt-nn spark run --network gpt2 --kind score --input lake.reviews
        --key id --text body --output lake.scores --master spark://host:7077
    spark-submit scripts/spark.py run --input lake.texts --output lake.vectors

It embeds, scores, classifies, completes or draws. The input is a table, or a file or
folder of Parquet. The output is a folder of Parquet, or a table where its name has a
dot. It gets the columns of the relation that `dbt run` makes, and a digest. Rows that
it has already, with the same key, text, options and checkpoint, are not computed again:
a run that was ended goes on where it was. Each executor has dbt_nn installed, and
reaches the checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dbt_nn.cli import command, group
from dbt_nn.runner import parse_options
from dbt_nn.spark import (
    DIGEST,
    check_keys,
    compute,
    plan,
    result_schema,
    select_rows,
)
from dbt_nn.spark import metrics as new_metrics
from dbt_nn.spark.output import (
    COMMIT_EACH_TASK,
    Claim,
    Folder,
    Table,
    is_table,
    open_input,
    open_output,
)
from dbt_nn.spark.plan import RESULTS, ROWS, SparkError, Task
from dbt_nn.spark.prepare import Network, prepared

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

TASKS_A_CORE = 4  # at least, where each has LEAST_ROWS: cores that end soon get others
LEAST_ROWS = 8
LINE_S = 5.0  # between two lines of progress
KEPT = {"text": "keep"}  # families whose results stay when their rows are withdrawn


# --- Spark ------------------------------------------------------------------------


def check_java() -> None:
    """Say what lacks where there is no Java.

    Raises:
        SparkError: there is none.

    """
    home = os.environ.get("JAVA_HOME")
    if (home and (Path(home) / "bin" / "java").exists()) or shutil.which("java"):
        return
    raise SparkError(
        "Spark needs Java 17 or newer, and there is none: install it (apt-get install "
        "openjdk-17-jre-headless), or set JAVA_HOME"
    )


def is_submitted() -> bool:
    """Whether spark-submit started this process, and a JVM before it."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keep what Java writes to stderr from the terminal: warnings, traces of its own.

    A JVM has the stderr that it was started with: a file without a name.
    """
    if verbose or is_submitted():
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def session(
    master: str | None, configuration: dict[str, str], *, tables: bool, verbose: bool
) -> Iterator[SparkSession]:
    """A session of Spark: that of spark-submit, or one of our own.

    Args:
        master: of the cluster.
        configuration: settings of Spark.
        tables: whether there are tables, which outlive a session in Hive's catalog.
        verbose: show what Spark logs.

    Raises:
        SparkError: Spark does not start.

    """
    if not is_submitted():
        check_java()
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise SparkError(
            f"the Python package {error.name} is not installed: "
            "pip install 'dbt-nn[spark]'"
        ) from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("dbt-nn")
    if master:
        builder = builder.master(master)
    elif "spark.master" not in configuration and not is_submitted():
        builder = builder.master("local[*]")
    settings = {
        "spark.ui.showConsoleProgress": "false",
        **COMMIT_EACH_TASK,
        **({"spark.sql.catalogImplementation": "hive"} if tables else {}),
        **configuration,
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        with quiet(verbose):
            try:
                made = builder.getOrCreate()
            except Exception as error:  # of Spark or py4j, in each version others
                raise SparkError(f"Spark does not start: {reason(error)}") from None
        if not verbose:
            made.sparkContext.setLogLevel("OFF")
        try:
            yield made
        finally:
            made.stop()
    except PySparkException as error:
        raise SparkError(reason(error)) from None
    except Exception as error:
        if type(error).__module__.startswith("py4j"):
            raise SparkError(reason(error)) from None
        raise


def reason(error: BaseException) -> str:
    """What an error of Spark says, without its traces."""
    text = str(error)
    # ours, of an executor
    found = re.findall(r"(?:SparkError|CheckpointError|DatabaseError): (.+)", text)
    if found:
        return found[-1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    python = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    if "Traceback" in text and python:
        return python[-1]
    for line in lines:
        if not line.startswith(("An error occurred while calling", "at ")):
            return re.sub(r"^:?\s*([\w$]+\.)+[\w$]+: ", "", line)
    return type(error).__name__


# --- Progress ---------------------------------------------------------------------


class Progress:
    """Lines on stderr: rows that are done, rows a second and the time that is left."""

    def __init__(self, total: int, metrics: Any):
        self.total, self.metrics = total, metrics
        self.begun = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Progress:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def line(self) -> str:
        """How far it is."""
        done = min(int(self.metrics.values().get("rows", 0)), self.total)
        seconds = time.monotonic() - self.begun
        text = f"{done:,} of {self.total:,} rows"
        if done:
            left = seconds / done * (self.total - done)
            text += f", {done / seconds:.1f} rows/s, {clock(left)} left"
        return text

    def _follow(self) -> None:
        said = ""
        while not self.ended.wait(LINE_S):
            line = self.line()
            if line.partition(" ")[0] != said.partition(" ")[0]:
                print(line, file=sys.stderr, flush=True)
                said = line


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# --- A run ------------------------------------------------------------------------


def tasks(rows: int, kind: str, cores: int, rows_a_task: int | None) -> int:
    """How many tasks deal out so many rows."""
    if rows_a_task:
        return max(1, math.ceil(rows / rows_a_task))
    return max(
        1,
        math.ceil(rows / ROWS[kind]),
        min(TASKS_A_CORE * cores, math.ceil(rows / LEAST_ROWS)),
    )


@dataclass(frozen=True)
class Run:
    """What is to be computed, of what, and where it is written."""

    task: Task
    network: Network
    df: DataFrame
    output: Folder | Table

    @property
    def key(self) -> DataType:
        """The key's type."""
        return self.df.schema[self.task.key].dataType

    @property
    def schema(self) -> StructType:
        """Of the results."""
        return result_schema(self.task, self.network, self.key, digest=True)

    def check(self) -> None:
        """Stop where the output holds something else.

        Raises:
            SparkError: what.

        """
        columns = self.output.columns()
        if columns is not None and list(columns) != self.schema.names:
            raise SparkError(
                f"{self.output.name} has the columns {', '.join(columns)}, and these "
                f"results have {', '.join(self.schema.names)}: choose another --output"
            )

    def add(self, rows_a_task: int | None, memory: str | None) -> int:
        """Compute and write the rows that the output lacks; return how many."""
        context = self.df.sparkSession.sparkContext
        earlier = self.output.read(self.schema)
        rows = select_rows(
            self.task, self.network, self.df, earlier=earlier, digest=True
        )
        total = rows.count()
        if not total:
            return 0
        metrics = new_metrics(self.df.sparkSession)
        partitions = tasks(
            total, self.task.kind, context.defaultParallelism, rows_a_task
        )
        results = compute(
            self.task,
            self.network,
            rows.repartition(partitions),
            self.key,
            memory=memory,
            metrics=metrics,
            digest=True,
        )
        begun = time.monotonic()
        with Progress(total, metrics):
            self.output.append(results)
        seconds = time.monotonic() - begun
        counted = metrics.values()
        lost = counted["lost_servers"]
        print(
            f"{total:,} rows in {clock(seconds)}, {total / seconds:.1f} rows/s; with "
            f"an error: {counted['errors']:,}; servers: {counted['servers']}"
            + (f", lost: {lost}" if lost else ""),
            file=sys.stderr,
        )
        return total

    def tidy(self, withdrawn: str) -> int:
        """Remove results that were replaced or are not asked for; return how many."""
        from pyspark.sql import functions as f

        written = self.output.read(self.schema)
        if written is None:
            return 0
        given = select_rows(self.task, self.network, self.df, digest=True)
        now = given.select(
            given[f"`{self.task.key}`"].alias("_key"), given[DIGEST].alias("_digest")
        )
        key = self.task.result_key
        known = written.join(now, written[key] == now["_key"], "left")
        good = f.col("_digest") == f.col(DIGEST)
        if withdrawn == "keep":
            good = good | f.col("_key").isNull()
        # a task may have written its file, and Spark not heard of it
        names = [name for name in (key, "chunk", DIGEST) if name in written.columns]
        kept = known.where(good).select(*written.columns).dropDuplicates(names)
        before, after = written.count(), kept.count()
        if after < before:
            self.output.replace(kept)
        return before - after


@command(
    """Compute the rows of a table or of Parquet files, and write the results.

    dbt-nn spark run --network minilm --input texts.parquet --output vectors"""
)
@click.option("--network", default="minilm", show_default=True, help="Its models.")
@click.option(
    "--kind",
    type=click.Choice([*RESULTS]),
    help="What to do (default: embed, complete or draw, what the network does).",
)
@click.option("--input", "given", required=True, metavar="TABLE_OR_PARQUET")
@click.option("--output", required=True, metavar="FOLDER_OR_TABLE")
@click.option("--key", help="The column that names a row (id, prompt_id, image_id).")
@click.option("--text", help="The column of texts (default: text, or prompt).")
@click.option("--text-pair", help="The column of second texts.")
@click.option("--checkpoint", metavar="FOLDER_OR_HUB_NAME", help="Its weights.")
@click.option("--name", help="The checkpoint's name in the results.")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--option", "-o", "options", multiple=True, metavar="NAME=VALUE")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE")
@click.option(
    "--withdrawn",
    type=click.Choice(["delete", "keep"]),
    help="Results of rows that are not in the input any more (default: as dbt run "
    "does, keep scores and completions, delete others).",
)
@click.option("--rows-a-task", type=click.IntRange(min=1), metavar="N")
@click.option("--memory", help="shared_buffers of each core's server, like 512MB.")
@click.option("--master", help="Of the cluster (default: spark-submit's, or local[*]).")
@click.option("--conf", multiple=True, metavar="NAME=VALUE", help="Spark's settings.")
@click.option("--verbose", is_flag=True, help="Show what Spark logs.")
def run(
    network: str,
    kind: str | None,
    given: str,
    output: str,
    withdrawn: str | None,
    rows_a_task: int | None,
    memory: str | None,
    master: str | None,
    conf: tuple[str, ...],
    verbose: bool,
    **told: Any,
) -> None:
    """Carry out `spark run`."""
    configuration = dict(entry.partition("=")[::2] for entry in conf)
    source = plan.find_source(
        network, told["checkpoint"], told["name"], told["revision"]
    )
    kind = kind or {"text": "complete", "diffusion": "draw"}.get(source.family, "embed")
    defaults = {
        "encoder": ("id", "text"),
        "text": ("prompt_id", "prompt"),
        "diffusion": ("image_id", None),
    }[source.family]
    roles = {"key": told["key"] or defaults[0]}
    if defaults[1]:
        roles["text"] = told["text"] or defaults[1]
    if told["text_pair"]:
        roles["text_pair"] = told["text_pair"]
    options = parse_options(told["options"]) if told["options"] else {}
    if kind == "score":
        options = {"max_new_tokens": 0, **options}
    variables = parse_options(told["variables"]) if told["variables"] else {}
    tables = is_table(given) or is_table(output)
    with session(master, configuration, tables=tables, verbose=verbose) as spark:
        df = open_input(spark, given)
        task = plan.make(
            kind,
            df.schema,
            network=network,
            roles=roles,
            source=source,
            options=options,
            variables=variables,
        )
        network_ = prepared(task)
        made = Run(task, network_, df, open_output(spark, output))
        with Claim(made.output):
            made.output.recover()
            made.check()
            check_keys(task, df)
            added = made.add(rows_a_task, memory)
            removed = made.tidy(withdrawn or KEPT.get(source.family, "delete"))
        print(f"{made.output.name}: new rows: {added:,}, removed: {removed:,}")


@group(__doc__)
def main() -> None:
    """Carry out the command line."""


main.add_command(run)
