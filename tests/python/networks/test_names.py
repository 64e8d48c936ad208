"""Names that dbt or PostgreSQL would make another of are refused at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection

from conftest import Dbt, run_script
from dbt_nn import database
from runs import copy_bare_project

MODEL = """
{{ config(
    materialized='layer', schema='network', alias=var('alias', 'small'),
    meta={'network': 'small', 'family': 'text', 'place': ['x']},
) }}
select 1 as x
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one layer, which no test builds."""
    folder = copy_bare_project(tmp_path_factory.mktemp("project"))
    model = folder / "models" / "small.sql"
    model.parent.mkdir()
    model.write_text(MODEL, encoding="utf-8")
    return folder


@pytest.fixture
def tables(connection: Connection) -> Iterator[list[tuple[str, str]]]:
    """What there is before the test, and has to be there unchanged after it."""
    query = "select schemaname, tablename from pg_tables order by 1, 2"
    with connection.cursor() as cursor:
        cursor.execute(query)
        before = cursor.fetchall()
        yield before
        cursor.execute(query)
        assert cursor.fetchall() == before


@pytest.mark.parametrize("character", ['"', "'", "\\", "%"])
def test_quotes(
    dbt: Dbt, project: Path, tables: list[tuple[str, str]], character: str
) -> None:
    """Of these, dbt itself makes a syntax error, or does not find its tables again."""
    environment = {"DBT_NN_SCHEMA": f"my{character}schema"}
    done = dbt(
        *("run", "--project-dir", str(project), "--select", "small"),
        env={**environment, "DBT_TARGET_PATH": str(project / "target")},
        check=False,
    )
    assert done.returncode == 2
    problem = f"the schema my{character}schema has the character {character}"
    assert problem in done.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_NN_SCHEMA", environment["DBT_NN_SCHEMA"])
        with pytest.raises(database.DatabaseError, match="dbt cannot quote"):
            database.settings()
        listed = run_script("load_checkpoint.py", "--list")
    assert f"has the character {character}" in listed.stderr
    assert "Traceback" not in listed.stderr


@pytest.mark.parametrize(
    ("schema", "alias", "problem"),
    [
        ("é" * 32, "small", "the schema {schema} has a name of 64 bytes"),
        ("s" * 56, "small", "the schema {schema}_network has a name of 64 bytes"),
        ("s", "a" * 51, "the relation {alias} has a name of 51 bytes"),
    ],
    ids=["schema", "layers", "functions"],
)
def test_names_that_would_be_cut(
    dbt: Dbt,
    project: Path,
    tables: list[tuple[str, str]],
    schema: str,
    alias: str,
    problem: str,
) -> None:
    done = dbt(
        *("run", "--project-dir", str(project), "--select", "small"),
        *("--vars", json.dumps({"alias": alias})),
        env={
            "DBT_NN_SCHEMA": schema,
            "DBT_TARGET_PATH": str(project / "target"),
        },
        check=False,
    )
    assert done.returncode != 0
    assert problem.format(schema=schema, alias=alias) in done.stdout


def test_names_that_scripts_would_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBT_NN_SCHEMA", "é" * 32)
    with pytest.raises(database.DatabaseError, match="of 64 bytes"):
        database.settings()
    monkeypatch.setenv("DBT_NN_SCHEMA", "é" * 31)
    assert database.settings()["schema"] == "é" * 31
