"""What the networks give on Spark is what `dbt run` gives, to the bit."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from psycopg2.extensions import connection as Connection
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from spark_cluster import leftovers, local_session, own_folder, wait_until
from transformers import BertForSequenceClassification

from conftest import Dbt
from dbt_nn import generate as generate_network
from dbt_nn import spark as nn
from dbt_nn.spark import executor, output, plan, prepare
from runs import Ddpm, Encoder, Gpt2, Runs, copy_bare_project, load_checkpoint
from small_networks import save_encoder, save_image, save_text

TEXTS: list[tuple[int, str | None]] = [
    (1, "It is a truth universally acknowledged"),
    (2, None),
    (3, ""),
    (5, "Grüße aus Köln, 中文 \u2028 'quoted' \\ %s"),
    (8, "My dear Mr. Bennet, have you heard? " * 60),
    (9, "truth " * 170_000),  # a megabyte
    *((key, f"a truth of {key} words, " * (key % 7)) for key in range(20, 40)),
]
PROMPTS: list[dict[str, Any]] = [
    {"prompt_id": 1, "prompt": "It is a truth", "max_new_tokens": 6},
    {"prompt_id": 2, "prompt": None},
    {"prompt_id": 3, "prompt": "", "temperature": 0.9, "seed": 5},
    {"prompt_id": 4, "prompt": "My dear", "temperature": -1.0},
    {"prompt_id": 5, "prompt": "My dear", "temperature": 2.0, "seed": 1 << 40},
    {"prompt_id": 6, "prompt": "Emma", "stop_strings": ["a", "e"]},
    {"prompt_id": 7, "prompt": "She was", "choices": ["happy", " not, at all"]},
    {"prompt_id": 8, "prompt": "x" * 2000},
    *({"prompt_id": n, "prompt": "I" * n, "temperature": 1.5} for n in range(20, 28)),
]
IMAGES: list[dict[str, Any]] = [
    {"image_id": 7},
    {"image_id": 30, "seed": 11},
    {"image_id": -2, "num_inference_steps": 3},
    {"image_id": 10},
    {"image_id": 11, "eta": 2.0},
]
OPTIONS = {"num_inference_steps": 2, "scheduler": "ddim", "seed": 40}


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    with pytest.MonkeyPatch.context() as patch, own_folder():
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(prepare, "cache_folder", lambda: cache)
        with local_session(tmp_path_factory.mktemp("spark")) as session:
            yield session
        wait_until(lambda: leftovers() == ([], []))


@pytest.fixture(scope="module")
def networks(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Runs, Path]]]:
    """Networks of two layers: a run of each kind, and its checkpoint."""
    folder = tmp_path_factory.mktemp("networks")
    texts = [text[:500] for _, text in TEXTS if text]
    saved = {
        "spark_bert": save_encoder(folder / "spark_bert", texts, 1),
        "spark_gpt": save_text(folder / "spark_gpt", 2),
        "spark_unet": save_image(folder / "spark_unet", 3),
    }
    kinds = {"spark_bert": Encoder, "spark_gpt": Gpt2, "spark_unet": Ddpm}
    made = {}
    for name, checkpoint in saved.items():
        load_checkpoint(checkpoint, name)
        project = copy_bare_project(folder / f"project-{name}")
        files = generate_network.generate(checkpoint, name)
        generate_network.write(project / "models" / name, files)
        runs = kinds[name](
            dbt, connection, f"test_{name}", folder / f"target-{name}", name, project
        )
        made[name] = runs, checkpoint
    yield made
    for name, (runs, _) in made.items():
        runs.drop()
        runs.execute(f"drop schema {name} cascade")


def settings(networks: dict[str, tuple[Runs, Path]], name: str) -> dict[str, Any]:
    """Arguments of the functions that name a network."""
    runs, checkpoint = networks[name]
    return {
        "network": name,
        "checkpoint": str(checkpoint),
        "project": str(runs.project),
    }


def texts_of(spark: SparkSession, rows: list[tuple] = TEXTS) -> DataFrame:
    return spark.createDataFrame(rows, "id int, text string").repartition(3)


def as_rows(found: list[Row], *, key: str) -> dict[Any, dict[str, Any]]:
    """Rows of Spark by key, with vectors in float32."""
    return {comparable(row.asDict(), key)[0]: comparable(row.asDict(), key)[1]
            for row in found}  # fmt: skip


def comparable(row: dict[str, Any], key: str) -> tuple[Any, dict[str, Any]]:
    """A row's key and chunk, and what is to be the same in it."""
    made = dict(row)
    made.pop("finished_at", None)
    made.pop("vector", None)
    for name, value in made.items():
        if name in ("embedding", "logits") and value is not None:
            numbers = np.array(value, dtype=np.float32)
            made[name] = numbers.tobytes()
    return (made[key], made.get("chunk", 0)), made


def of_dbt(runs: Runs, relation: str, key: str) -> dict[Any, dict[str, Any]]:
    """The rows of a relation in the same form."""
    kinds = runs.query(
        "select attname as name, format_type(atttypid, null) as type "
        "from pg_attribute where attrelid = %s::regclass and attnum > 0",
        [f"{runs.schema}.{relation}"],
    )
    casts = {"vector": "::real[]", "jsonb": "::text", "uuid": "::text"}
    columns = ", ".join(
        f"{kind['name']}{casts.get(kind['type'], '')}" for kind in kinds
    )
    rows = runs.query(f"select {columns} from {runs.schema}.{relation}")
    return dict(comparable(row, key) for row in rows)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        different = {
            name: (found[key][name], value)
            for name, value in row.items()
            if found[key][name] != value
        }
        assert not different, (key, different)


# --- The output -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}/vectors", "lake.vectors"])
def test_two_runs_on_one_output(
    spark: SparkSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The second is refused; after one that was killed, the next goes on."""
    monkeypatch.setattr(output, "BEAT_S", 0.2)
    monkeypatch.setattr(output, "DEAD_S", 1.5)
    written = output.open_output(spark, name.format(tmp_path))
    first = output.Claim(written)
    with first, pytest.raises(plan.SparkError, match="another run"):
        output.Claim(written).__enter__()
    killed = output.Claim(written)
    with killed:
        killed.ended.set()
        killed.thread.join()
        with output.Claim(written):
            pass
    assert killed._written() is None


# --- Rows -----------------------------------------------------------------------


def test_vectors_are_those_of_dbt_run(
    spark: SparkSession, networks: dict[str, tuple[Runs, Path]]
) -> None:
    runs = networks["spark_bert"][0]
    runs.write_texts([{"id": key, "text": text} for key, text in TEXTS])
    options = {"max_seq_length": 24, "chunk_overlap": 4}
    texts = runs.query(
        f"select id, text from {runs.schema}.test_texts where id <> 9"
    )  # a megabyte in chunks is for the next test
    assert len(texts) == len(TEXTS) - 1
    runs.execute(f"delete from {runs.schema}.test_texts where id = 9")
    runs.run(spark_bert_options=options)
    expected = of_dbt(runs, "spark_bert_embeddings", "key")
    rows = [(key, text) for key, text in TEXTS if key != 9]
    metrics = nn.metrics(spark)
    found = nn.embed(
        texts_of(spark, rows),
        options=options,
        metrics=metrics,
        **settings(networks, "spark_bert"),
    )
    assert_same(as_rows(found.collect(), key="key"), expected)
    assert len(expected) > len(rows)
    counted = metrics.values()
    assert counted["rows"] == len(rows)
    assert counted["errors"] == 1
    assert 1 <= counted["servers"] <= 2
    assert counted["lost_servers"] == 0


def test_long_hostile_and_changed_texts(
    spark: SparkSession, networks: dict[str, tuple[Runs, Path]]
) -> None:
    runs = networks["spark_bert"][0]
    runs.write_texts([{"id": key, "text": text} for key, text in TEXTS])
    runs.run("--full-refresh")
    expected = of_dbt(runs, "spark_bert_embeddings", "key")
    hostile = spark.sql("select 90 as id, cast(x'41ff' as string) as text").union(
        spark.createDataFrame([(91, "nu\0l")], "id int, text string")
    )
    given = settings(networks, "spark_bert")
    done = nn.embed(texts_of(spark).union(hostile), digest=True, **given).collect()
    found = as_rows(done, key="key")
    for row in found.values():
        assert len(row.pop("digest")) == 64
    errors = {key: found.pop((key, 0)) for key in (90, 91)}
    assert_same(found, expected)
    assert errors[90]["error"] == "text is not UTF-8: byte 0xff at 1"
    assert "U+0000" in errors[91]["error"]
    assert errors[91] | {"error": None, "embedding": None} == {
        "key": 91, "chunk": 0, "embedding": None, "tokens": None, "truncated": None,
        "error": None, "checkpoint": "spark_bert",
    }  # fmt: skip

    earlier = spark.createDataFrame(done, _schema_of(done, spark, networks))
    changed = [(1, "another truth"), *TEXTS[1:], (50, "new")]
    again = nn.embed(texts_of(spark, changed), earlier=earlier, **given).collect()
    assert sorted(row.key for row in again) == [1, 50]


def _schema_of(done: list[Row], spark: SparkSession, networks: Any) -> Any:
    return nn.embed(
        texts_of(spark), digest=True, **settings(networks, "spark_bert")
    ).schema


def test_completions_and_scores_are_those_of_dbt_run(
    spark: SparkSession, networks: dict[str, tuple[Runs, Path]]
) -> None:
    runs = networks["spark_gpt"][0]
    runs.write_prompts(PROMPTS)
    options = {"max_new_tokens": 9, "top_k": 40}
    runs.run(spark_gpt_options=options)
    expected = of_dbt(runs, "spark_gpt_completions", "prompt_id")
    prompts = spark.createDataFrame(
        [Row(**{name: row.get(name) for name in PROMPT_COLUMNS}) for row in PROMPTS],
        ", ".join(f"{name} {kind}" for name, kind in PROMPT_COLUMNS.items()),
    )
    given = settings(networks, "spark_gpt")
    found = nn.complete(prompts.repartition(2), options=options, **given)
    assert_same(as_rows(found.collect(), key="prompt_id"), expected)
    assert sum(row["error"] is not None for row in expected.values()) == 3

    runs.write_prompts(
        [{"prompt_id": r["prompt_id"], "prompt": r["prompt"]} for r in PROMPTS]
    )
    runs.run(spark_gpt_options={"max_new_tokens": 0})
    expected = of_dbt(runs, "spark_gpt_scores", "prompt_id")
    renamed = prompts.selectExpr("prompt_id as n", "prompt as words").repartition(2)
    found = nn.score(renamed, key="n", text="words", **given)
    assert_same(as_rows(found.collect(), key="prompt_id"), expected)


PROMPT_COLUMNS = {
    "prompt_id": "int",
    "prompt": "string",
    "max_new_tokens": "int",
    "temperature": "double",
    "seed": "bigint",
    "stop_strings": "array<string>",
    "choices": "array<string>",
}


def test_pictures_are_those_of_dbt_run(
    spark: SparkSession, networks: dict[str, tuple[Runs, Path]]
) -> None:
    runs = networks["spark_unet"][0]
    runs.draw(IMAGES, spark_unet_options=OPTIONS)
    kinds = {"image_id": "int", "num_inference_steps": "int", "eta": "double",
             "seed": "bigint"}  # fmt: skip
    images = spark.createDataFrame(
        [Row(**{name: row.get(name) for name in kinds}) for row in IMAGES],
        ", ".join(f"{name} {kind}" for name, kind in kinds.items()),
    )
    found = nn.draw(
        images.repartition(3), options=OPTIONS, **settings(networks, "spark_unet")
    ).collect()
    expected = of_dbt(runs, "spark_unet_requests", "image_id")
    assert len(found) == len(IMAGES)
    for row in found:
        told = expected[row.image_id, 0]
        for name in ("scheduler", "num_inference_steps", "eta", "seed", "error"):
            assert row[name] == told[name], (row.image_id, name)
        if row.error is None:
            pixels = np.array(Image.open(io.BytesIO(row.png)))
            wanted = runs.pixels(row.image_id, row.num_inference_steps)
            assert np.array_equal(pixels.reshape(wanted.shape), wanted)
    assert [row.image_id for row in found if row.error] == [11]


@pytest.mark.long
def test_classes_of_pairs_are_those_of_dbt_run(
    spark: SparkSession, dbt: Dbt, connection: Connection, tmp_path: Path
) -> None:
    labels = {0: "no", 1: "yes", 2: "perhaps"}
    words = [text[:500] for _, text in TEXTS if text]
    checkpoint = save_encoder(
        tmp_path / "pairs", words, 4, BertForSequenceClassification, id2label=labels
    )
    load_checkpoint(checkpoint, "spark_pairs")
    project = copy_bare_project(tmp_path / "project")
    files = generate_network.generate(checkpoint, "spark_pairs")
    generate_network.write(project / "models" / "spark_pairs", files)
    runs = Encoder(
        dbt, connection, "test_spark_pairs", tmp_path / "target", "spark_pairs", project
    )
    rows = [(key, text, None if key == 5 else "my dear") for key, text in TEXTS]
    try:
        runs.write_texts([{"id": k, "text": a, "other": b} for k, a, b in rows])
        runs.run(spark_pairs_text_pair="other")
        expected = of_dbt(runs, "spark_pairs_classes", "key")
    finally:
        runs.drop()
        runs.execute("drop schema spark_pairs cascade")
    found = nn.classify(
        spark.createDataFrame(rows, "id int, text string, other string"),
        network="spark_pairs",
        text_pair="other",
        checkpoint=str(checkpoint),
        name="spark_pairs",
        project=str(project),
    )
    assert_same(as_rows(found.collect(), key="key"), expected)
    assert {row["label"] for row in expected.values()} <= {*labels.values(), None}


# --- What stops all rows ----------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "wanted", "message"),
    [
        ([(1, "a"), (1, "b"), (2, "c")], "id int, text string", {}, "id 1 is there 2"),
        ([(1, "a"), (None, "b")], "id int, text string", {}, "id is NULL"),
        ([(1, "a")], "id int, words string", {}, "has no column text: it has id, word"),
        pytest.param(
            [(1, b"a")],
            "id int, text binary",
            {},
            "its column text is of type bytea",
            marks=pytest.mark.long,
        ),
        ([(1, "a")], "id int, text string", {"options": {"promt": "x"}}, "mean prompt"),
        ([(1, "a")], "id int, text string", {"kind": "draw"}, "does not draw"),
        ([(1, "a")], "id int, text string", {"network": "nothing"}, "no network noth"),
        ([(1, "a")], "id int, text string", {"checkpoint": "/no/where"}, "no folder"),
    ],
)
def test_what_concerns_all_rows_is_said_before_any(
    spark: SparkSession,
    networks: dict[str, tuple[Runs, Path]],
    rows: list[tuple],
    columns: str,
    wanted: dict[str, Any],
    message: str,
) -> None:
    given = {**settings(networks, "spark_bert"), **wanted}
    kind, network = given.pop("kind", "embed"), given.pop("network")
    with pytest.raises(nn.plan.ExpectedError, match=message):
        nn.run(
            kind,
            spark.createDataFrame(rows, columns),
            {"key": "id", "text": "text"},
            network,
            **given,
        )


@pytest.mark.long  # to make a network ready takes its time
def test_a_column_with_nearly_the_name_of_an_option(
    spark: SparkSession, networks: dict[str, tuple[Runs, Path]]
) -> None:
    prompts = spark.createDataFrame(
        [(1, "a", 0.5)], "prompt_id int, prompt string, temprature double"
    )
    with pytest.raises(nn.SparkError, match="temprature: did you mean temperature"):
        nn.complete(prompts, **settings(networks, "spark_gpt"))


# --- Servers ----------------------------------------------------------------------


def test_a_killed_server_costs_its_rows_a_second_time(
    spark: SparkSession, networks: dict[str, tuple[Runs, Path]]
) -> None:
    """In this process, as a worker of Spark does it."""
    runs, checkpoint = networks["spark_bert"]
    df = texts_of(spark)
    source = plan.find_source("spark_bert", str(checkpoint), None, None)
    task = plan.make(
        "embed", df.schema, network="spark_bert", roles={"key": "id", "text": "text"},
        source=source, options={}, variables={}, project=str(runs.project),
    )  # fmt: skip
    network = prepare.prepared(task)
    schema = nn.result_schema(task, network, df.schema["id"].dataType, digest=False)
    job = executor.Job(task, network, to_arrow_schema(schema, timezone="UTC"))
    batch = pa.table(
        {"id": pa.array([1, 2], pa.int32()), "text": ["a truth", "My dear"]}
    ).to_batches()[0]
    try:
        made = executor.run(job, [batch, batch, batch])
        first = next(made)
        engine = executor._engine
        home = Path(engine.server.home)
        assert home.stat().st_mode & 0o777 == 0o700
        assert Path(engine.server.socket).stat().st_mode & 0o777 == 0o700
        assert next(made) == first
        assert executor._engine is engine
        os.kill(engine.server.process, signal.SIGKILL)
        assert next(made) == first
        assert executor._engine is not engine
        wait_until(lambda: not home.exists())
    finally:
        executor._drop_engine()


def names_of(process: psutil.Process) -> list[str]:
    """Names of a process's descendants."""
    names = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            names.append(child.name())
    return names


def test_a_killed_worker_leaves_no_server() -> None:
    """Neither a process nor a folder, be it killed at work or while it starts."""
    program = (
        "import json, time; from dbt_nn.spark.server import Server; "
        "s = Server('32MB'); print(s.home, s.process, flush=True); time.sleep(600)"
    )
    for starts in (False, True):
        worker = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )
        if starts:
            process = psutil.Process(worker.pid)
            wait_until(lambda process=process: "initdb" in names_of(process))
            worker.kill()
        else:
            home, process = worker.stdout.readline().split()
            assert psutil.pid_exists(int(process))
            worker.kill()
            wait_until(
                lambda home=home, process=process: (
                    not (psutil.pid_exists(int(process)) or Path(home).exists())
                )
            )
        worker.wait()
