"""The same networks on an Apache Spark cluster: a PostgreSQL on each executor's core.

    from dbt_nn import spark as nn

    vectors = nn.embed(texts, key="id", text="text")
    scores = nn.score(prompts, checkpoint="openai-community/gpt2", network="gpt2")

Spark deals out the rows, retries and schedules. A function takes a DataFrame with a key
and a text and gives one with the columns of the relation that `dbt run` makes, row for
row the same. Nothing is shuffled but the keys, which are looked at: that none is NULL,
and none there twice. The executors need dbt_nn, and reach the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dbt_nn.spark import plan
from dbt_nn.spark.plan import SparkError, Task

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

    from dbt_nn.spark.metrics import Metrics
    from dbt_nn.spark.prepare import Network

__all__ = ["SparkError", "classify", "complete", "draw", "embed", "metrics", "score"]

DIGEST = "digest"  # the column that says by what a result was made


def embed(
    df: DataFrame,
    *,
    key: str = "id",
    text: str = "text",
    network: str = "minilm",
    **settings: Any,
) -> DataFrame:
    """A vector for each text: the columns of `<network>_embeddings`.

    Args:
        df: the texts.
        key: its column that names a text.
        text: its column of texts.
        network: name of its folder in models/.
        settings: see `run`.

    """
    return run("embed", df, {"key": key, "text": text}, network, **settings)


def classify(
    df: DataFrame,
    *,
    network: str,
    key: str = "id",
    text: str = "text",
    text_pair: str | None = None,
    **settings: Any,
) -> DataFrame:
    """The classes of each text, or of each pair: the columns of `<network>_classes`.

    Args:
        df: the texts.
        network: name of its folder in models/.
        key: its column that names a text.
        text: its column of texts.
        text_pair: its column of second texts, for networks that read pairs.
        settings: see `run`.

    """
    roles = {"key": key, "text": text}
    if text_pair:
        roles["text_pair"] = text_pair
    return run("classify", df, roles, network, **settings)


def score(
    df: DataFrame,
    *,
    key: str = "prompt_id",
    text: str = "prompt",
    network: str = "gpt2",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> DataFrame:
    """How likely the network finds each text: the columns of `<network>_scores`.

    Args:
        df: the texts; other columns that are named like an option set it.
        key: its column that names a text.
        text: its column of texts.
        network: name of its folder in models/.
        options: of all texts; max_new_tokens is 0.
        settings: see `run`.

    """
    options = {"max_new_tokens": 0, **(options or {})}
    roles = {"key": key, "text": text}
    return run("score", df, roles, network, options=options, **settings)


def complete(
    df: DataFrame,
    *,
    key: str = "prompt_id",
    text: str = "prompt",
    network: str = "gpt2",
    **settings: Any,
) -> DataFrame:
    """A completion of each prompt: the columns of `<network>_completions`.

    Args:
        df: the prompts; other columns that are named like an option set it.
        key: its column that names a prompt.
        text: its column of prompts.
        network: name of its folder in models/.
        settings: see `run`.

    """
    return run("complete", df, {"key": key, "text": text}, network, **settings)


def draw(
    df: DataFrame, *, key: str = "image_id", network: str = "ddpm", **settings: Any
) -> DataFrame:
    """A picture for each row, as PNG, with the options that it was drawn by.

    An image that names no seed has one by its place among all: so Spark numbers them.

    Args:
        df: the images; columns that are named like an option set it.
        key: its column that names an image, a whole number.
        network: name of its folder in models/.
        settings: see `run`.

    Returns:
        image_id, png, scheduler, num_inference_steps, eta, seed, error, checkpoint.

    """
    return run("draw", df, {"key": key}, network, **settings)


def metrics(spark: SparkSession) -> Metrics:
    """Accumulators to give to the functions: rows, errors, seconds, servers."""
    from dbt_nn.spark.metrics import Metrics

    return Metrics(spark)


def run(
    kind: str,
    df: DataFrame,
    roles: Mapping[str, str],
    network: str,
    *,
    checkpoint: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    memory: str | None = None,
    metrics: Metrics | None = None,
    earlier: DataFrame | None = None,
    digest: bool = False,
    partitions: int | None = None,
    project: str | None = None,
) -> DataFrame:
    """What the functions above do.

    Args:
        kind: embed, classify, score, complete or draw.
        df: the rows.
        roles: names of its columns: key, text, text_pair.
        network: name of its folder in models/.
        checkpoint: a folder that driver and executors reach, or a name on the Hub
            (default: the network's own).
        name: of its schema, as results tell it (default: from the checkpoint's name).
        revision: branch, tag or commit on the Hub.
        options: of all rows, as in the var <network>_options.
        variables: other vars, such as batch_tokens.
        memory: shared_buffers of each core's server, like '512MB' (default: an eighth
            more than the checkpoint, and 128 MB).
        metrics: made by `metrics`.
        earlier: results that are there already, with their digests: rows whose key,
            text, options and checkpoint are unchanged are left out.
        digest: add the column `digest`.
        partitions: deal the rows out to so many tasks (default: as the DataFrame is).
        project: folder of the dbt project that has the network (default: the one that
            the driver is in, or dbt_nn itself).

    Raises:
        SparkError: a column, an option, a key or the network is not as it has to be.
        CheckpointError: something is wrong with the checkpoint.

    """
    from dbt_nn.spark.prepare import prepared

    source = plan.find_source(network, checkpoint, name, revision)
    task = plan.make(
        kind,
        df.schema,
        network=network,
        roles=roles,
        source=source,
        options=options or {},
        variables=variables or {},
        project=project,
    )
    network_ = prepared(task)
    check_keys(task, df)
    is_told = digest or earlier is not None
    rows = select_rows(task, network_, df, earlier=earlier, digest=is_told)
    if partitions is not None:
        rows = rows.repartition(partitions)
    return compute(
        task,
        network_,
        rows,
        df.schema[task.key].dataType,
        memory=memory,
        metrics=metrics,
        digest=is_told,
    )


def select_rows(
    task: Task,
    network: Network,
    df: DataFrame,
    *,
    earlier: DataFrame | None = None,
    digest: bool = False,
) -> DataFrame:
    """The columns that executors read, of the rows that `earlier` lacks."""
    given = numbered(task, df) if task.kind == "draw" else df
    columns = [given[f"`{column.name}`"].alias(column.name) for column in network.sent]
    names = {column.name for column in network.sent}
    given = given.select(*columns, *([digest_of(task, given, names)] if digest else []))
    if earlier is None:
        return given
    known = earlier.select(
        earlier[task.result_key].alias("_key"), earlier[DIGEST].alias("_digest")
    )
    is_known = (given[f"`{task.key}`"] == known["_key"]) & (
        given[DIGEST] == known["_digest"]
    )
    return given.join(known, is_known, "left_anti")


def compute(
    task: Task,
    network: Network,
    rows: DataFrame,
    key: DataType,
    *,
    memory: str | None = None,
    metrics: Metrics | None = None,
    digest: bool = False,
) -> DataFrame:
    """The results of rows that select_rows() gave; `key` is the key's type."""
    from pyspark.sql.pandas.types import to_arrow_schema

    from dbt_nn.spark import executor

    schema = result_schema(task, network, key, digest=digest)
    job = executor.Job(
        task,
        network,
        to_arrow_schema(schema, timezone="UTC"),
        memory,
        metrics.accumulators if metrics else None,
    )
    return rows.mapInArrow(partial(executor.run, job), schema)


def result_schema(
    task: Task, network: Network, key: DataType, *, digest: bool
) -> StructType:
    """The columns of the results, with the key of its type in the DataFrame."""
    from pyspark.sql import types

    fields = []
    for column in network.results:
        is_key = column.name == task.result_key and task.kind != "draw"
        kind = key if is_key else plan.spark_type(column.type)
        fields.append(types.StructField(column.name, kind))
    if digest:
        fields.append(types.StructField(DIGEST, types.StringType()))
    return types.StructType(fields)


def check_keys(task: Task, df: DataFrame) -> None:
    """Stop where a key is NULL or there twice.

    Raises:
        SparkError: which.

    """
    from pyspark.sql import functions as f

    key = df[f"`{task.key}`"]
    found = (
        df.groupBy(key.alias("key"))
        .count()
        .where(f.col("key").isNull() | (f.col("count") > 1))
        .orderBy("key")
        .limit(1)
        .collect()
    )
    for value, count in found:
        if value is None:
            raise SparkError(f"the DataFrame: {task.key} is NULL")
        raise SparkError(f"the DataFrame: {task.key} {value} is there {count} times")


def numbered(task: Task, df: DataFrame) -> DataFrame:
    """The images with the seeds of those that name none: by their place among all.

    As the macro diffusion_requests gives them: image n has the run's seed + n - 1.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    seed = task.options.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        return df  # the network says what is wrong with it
    key = f"`{task.key}`"
    places = df.select(
        df[key].alias("_key"),
        f.row_number().over(Window.orderBy(df[key].cast("long"))).alias("_place"),
    )
    whole = df.join(places, df[key] == places["_key"])
    made = f.lit(seed).cast("decimal(38,0)") + whole["_place"] - 1
    if "seed" in df.columns:
        made = f.coalesce(whole["seed"].cast("decimal(38,0)"), made)
    return whole.withColumn("seed", made).drop("_key", "_place")


def digest_of(task: Task, df: DataFrame, names: set[str]) -> Column:
    """A digest of all that decides a row's result: its column `digest`."""
    from pyspark.sql import functions as f
    from pyspark.sql import types

    parts = [f.lit(task.identity)]
    for name in sorted(names):
        column = df[f"`{name}`"]
        if isinstance(df.schema[name].dataType, types.StringType):
            # it need not be UTF-8
            column = f.sha1(column.cast("binary"))
        else:
            column = f.to_json(f.struct(column.alias(name)))
        parts.append(f.concat(f.lit(f"{name}="), f.coalesce(column, f.lit("null"))))
    return f.sha2(f.concat_ws("/", *parts), 256).alias(DIGEST)
