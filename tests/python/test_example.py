"""The example project uses dbt_nn as a package, beside its own tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg2

from gpt2_runs import PROJECT, TWIN, Reference, load_checkpoint

SCHEMA = "test_example"


def test_warehouse(connection: psycopg2.extensions.connection, tmp_path: Path) -> None:
    """Build it as its README says, and compare with transformers."""
    load_checkpoint(TWIN, "gpt2_twin")
    project = tmp_path / "warehouse"
    ignored = shutil.ignore_patterns("dbt_packages", "target", "logs", "*-lock.yml")
    shutil.copytree(PROJECT / "examples" / "warehouse", project, ignore=ignored)
    packages = project / "packages.yml"
    packages.write_text(packages.read_text().replace("../..", str(PROJECT)))

    def dbt(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dbt.cli.main", *arguments],
            cwd=project,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "DBT_NN_SCHEMA": SCHEMA,
                "DBT_TARGET_PATH": str(tmp_path / "target"),
            },
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    cursor = connection.cursor()
    cursor.execute(f"drop schema if exists {SCHEMA} cascade")
    dbt("deps")
    dbt("build", "--select", "+letters")
    cursor.execute(f"select name, letter from {SCHEMA}.letters order by name")
    letters = dict(cursor.fetchall())
    reference = Reference(TWIN)
    for name, mood in (("Elizabeth", "happy"), ("Mr. Darcy", "silent")):
        row = {"prompt": f"{name} was {mood}, and"}
        expected = reference.generate(row, max_new_tokens=24)
        assert letters[name] == row["prompt"] + reference.decode(expected)
    assert letters["Mrs. Bennet"].startswith("Mrs. Bennet was vexed, and")

    # all of it is in the example's own schemas
    cursor.execute(
        "select distinct schemaname from pg_tables where schemaname like %s",
        (f"{SCHEMA}%",),
    )
    assert {row[0] for row in cursor.fetchall()} == {SCHEMA, f"{SCHEMA}_gpt2"}
    cursor.execute(f"drop schema {SCHEMA}, {SCHEMA}_gpt2 cascade")
