"""scripts/bench.py on tiny shapes: every part runs, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg2
import pytest

from conftest import run_script
from dbt_nn.database import PROJECT


@pytest.mark.long
def test_every_part_runs(
    connection: psycopg2.extensions.connection, tmp_path: Path
) -> None:
    twin = PROJECT / "checkpoints" / "gpt2-twin"
    loaded = run_script("load_checkpoint.py", str(twin), "--name", "gpt2_twin")
    assert loaded.returncode == 0, loaded.stderr
    out = tmp_path / "bench.json"

    done = run_script("bench.py", "--smoke", "--out", str(out))

    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    for row in report["results"]:
        assert row["ours"] > 0, row
        assert row["theirs"] > 0, row
        assert f"| {row['what']} | {row['beside']} |" in done.stdout
    whats = " ".join(row["what"] for row in report["results"])
    for word in (
        "loading",
        "decode",
        "growth",
        "prefill",
        "dbt run",
        "UNet",
        "scale",
        "embedding",
    ):
        assert word in whats
    assert report["machine"]["torch"] in done.stdout
    cursor = connection.cursor()
    cursor.execute("select nspname from pg_namespace where nspname like '%bench%'")
    assert cursor.fetchall() == []
