"""What layers' functions do.

A layer whose rows parallel workers share is the same as without them, and rows of other
layers are looked up by all columns of their place.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from runs import TWIN, UNET_TWIN, Ddpm, Gpt2, Runs, entered, load_checkpoint

# Every layer that has bands is shared, however small.
EAGER = {"work_per_process": 1}

NOT_ASKED_FOR = ('_choice_tokens"', '_pooling"')
Layers = dict[str, str]  # name -> digest of its rows


@pytest.fixture(scope="module")
def ddpm(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ddpm]:
    load_checkpoint(UNET_TWIN, "ddpm_twin")
    runs = Ddpm(dbt, connection, "test_bands", tmp_path_factory.mktemp("target"))
    rows = [{"image_id": image_id, "num_inference_steps": 1} for image_id in (1, 5)]
    runs.draw(rows, **EAGER)
    yield runs
    runs.drop()


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gpt2]:
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(dbt, connection, "test_bands_text", tmp_path_factory.mktemp("target"))
    runs.write_prompts(
        {"prompt_id": length, "prompt_token_ids": list(range(length))}
        for length in (1, 19, 70)
    )
    runs.run(gpt2_options={"max_new_tokens": 1}, **EAGER)
    yield runs
    runs.drop()


def layer_functions(connection: Connection, step: str) -> list[tuple[str, str]]:
    """Table and function of each layer, in the order of a step."""
    with connection.cursor() as cursor:
        cursor.execute("select prosrc from pg_proc where oid = %s::regproc", [step])
        [(source,)] = cursor.fetchall()
    functions = re.findall(r'perform ("\w+"\."\w+")\(anew, held\);', source)
    return [
        (name.replace('_forward"', '"'), name)
        for name in functions[:-1]
        if "token_scores" not in name  # of no prompt here
    ]


def computed(
    runs: Runs, functions: list[tuple[str, str]], *settings: str
) -> tuple[Layers, int]:
    """Every layer computed anew, and how many workers were launched for that."""
    layers, connection = {}, runs.connection
    with entered(connection, runs.layer_schema, runs.schema) as cursor:
        cursor.execute("select pg_stat_force_next_flush()")
        launched = workers_launched(connection)
        for setting in settings:
            cursor.execute(f"set {setting}")
        try:
            for table, function in functions:
                cursor.execute(f"truncate {table}")
                cursor.execute(f"select {function}(true)")
                cursor.execute(
                    f"select md5(string_agg(row::text, ' ' order by row::text)) "
                    f"from {table} as row"
                )
                [(layers[table],)] = cursor.fetchall()
        finally:
            for setting in settings:
                cursor.execute(f"reset {setting.partition(' ')[0]}")
        cursor.execute("select pg_stat_force_next_flush()")
    return layers, workers_launched(connection) - launched


def computed_in_shares(
    runs: Runs, functions: list[tuple[str, str]], bands: int, share: float
) -> Layers:
    """The layers that have bands, put together from bands of that share."""
    layers = {}
    with entered(runs.connection, runs.layer_schema, runs.schema) as cursor:
        cursor.execute("set dbt_nn.all_places = 'true'")
        for table, _ in functions:
            all_bands = table.removesuffix('"') + '_bands"'
            cursor.execute(
                "select to_regprocedure(%s) is not null",
                [f"{all_bands}(integer, float8)"],
            )
            if cursor.fetchone() == (True,):
                cursor.execute(
                    f"select md5(string_agg(row::text, ' ' order by row::text)) "
                    f"from {all_bands}(%s, %s) as row",
                    [bands, share],
                )
                [(layers[table],)] = cursor.fetchall()
        cursor.execute("reset dbt_nn.all_places")
    return layers


def workers_launched(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_stat_clear_snapshot()")
        cursor.execute(
            "select parallel_workers_launched from pg_stat_database "
            "where datname = current_database()"
        )
        [(launched,)] = cursor.fetchall()
    return launched


def check_bands(runs: Runs, results: str) -> None:
    functions = layer_functions(runs.connection, f"{runs.schema}.{results}_step")
    assert len(functions) > 50

    def run(*settings: str) -> tuple[Layers, int]:
        return computed(runs, functions, *settings)

    serial, launched = run("max_parallel_workers_per_gather = 0")
    assert launched == 0
    # of choices and vectors, for which no prompt here asks
    empty = {table for table, digest in serial.items() if digest is None}
    assert all(table.endswith(NOT_ASKED_FOR) for table in empty), empty
    for workers in (1, 2, 4):
        shared, launched = run(f"max_parallel_workers_per_gather = {workers}")
        assert launched > 0
        assert shared == serial, f"{workers} workers"
    for bands, share in ((2, 0.25), (3, 0.11), (2, 0.0)):
        shared = computed_in_shares(runs, functions, bands, share)
        assert len(shared) > 50
        assert shared.items() <= serial.items(), f"{bands} bands, {share} each"
    # planned, and not there when it comes to it
    alone, launched = run(
        "max_parallel_workers_per_gather = 2", "max_parallel_workers = 0"
    )
    assert launched == 0
    assert alone == serial


def test_bands_of_images(ddpm: Ddpm) -> None:
    check_bands(ddpm, "ddpm_denoised")


def test_bands_of_texts(gpt2: Gpt2) -> None:
    check_bands(gpt2, "gpt2_completion_tokens")


# --- Plans --------------------------------------------------------------------


@contextmanager
def explained(connection: Connection) -> Iterator[deque[str]]:
    """The plans of all statements, those of functions among them."""
    settings = {
        "auto_explain.log_min_duration": 0,
        "auto_explain.log_nested_statements": "on",
        "auto_explain.log_format": "json",
        "client_min_messages": "log",
    }
    # psycopg2 keeps a list short
    connection.notices, notices = deque(), connection.notices
    with connection.cursor() as cursor:
        cursor.execute("load 'auto_explain'")
        for name, value in settings.items():
            cursor.execute(f"set {name} = {value}")
        try:
            yield connection.notices
        finally:
            for name in settings:
                cursor.execute(f"reset {name}")
            connection.notices = notices


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def looked_up_in_part(plan: dict[str, Any], place: tuple[str, ...]) -> set[str]:
    """Rows of a relation by its index, of which too many are read.

    Those whose index condition lacks a column of their place that the plan compares
    with another relation's, after the rows were read.
    """
    nodes = list(nodes_of(plan))
    conditions = {
        node["Alias"]: node for node in nodes if {"Alias", "Index Cond"} <= {*node}
    }
    found = set()
    for node in nodes:
        filters = " ".join(node.get(kind, "") for kind in ("Filter", "Join Filter"))
        for alias, scan in conditions.items():
            for column in place:
                name = rf'{alias}\."?{column}"?'
                compared = re.search(rf"\({name} = [^\d]|= {name}\)", filters)
                if compared and not re.search(rf"\b{column}\b", scan["Index Cond"]):
                    found.add(f"{scan['Relation Name']} by {scan['Index Cond']}")
    return found


def forget_statistics(runs: Runs) -> None:
    """Take the tables back to where nothing has vacuumed or analyzed them yet."""
    schemas = [[runs.schema, runs.layer_schema]]
    tables = "select oid from pg_class where relnamespace = any(%s::regnamespace[])"
    runs.execute(f"delete from pg_statistic where starelid in ({tables})", schemas)
    runs.execute(
        "update pg_class set relpages = 0, reltuples = -1 "
        f"where relkind = 'r' and oid in ({tables})",
        schemas,
    )


def check_plans(
    runs: Runs, results: str, statements: list[str], place: tuple[str, ...]
) -> None:
    """Of statements that are rolled back, whatever the planner knows of the input."""
    functions = layer_functions(runs.connection, f"{runs.schema}.{results}_step")
    calls = [f"select {function}(true)" for _, function in functions]
    calls += [f"select {runs.schema}.{results}_forward(true)", *statements]
    # layers have no statistics; the others have, after a while
    inputs = runs.query(
        "select oid::regclass::text as name from pg_class "
        "where relkind = 'r' and relnamespace = %s::regnamespace",
        [runs.schema],
    )
    for is_analyzed in (False, True):
        forget_statistics(runs)
        if is_analyzed:
            runs.execute(f"analyze {', '.join(row['name'] for row in inputs)}")
        with entered(runs.connection, runs.layer_schema, runs.schema) as cursor:
            cursor.execute("begin; set local max_parallel_workers_per_gather = 0")
            with explained(runs.connection) as notices:
                for call in calls:
                    cursor.execute(call)
            cursor.execute("rollback")
        plans = [
            json.loads(plan)
            for _, _, plan in (n.partition("plan:") for n in notices)
            if plan
        ]
        assert sum("insert into" in plan["Query Text"] for plan in plans) > len(
            functions
        )
        found = {
            (plan["Query Text"].split("\n")[0], scan)
            for plan in plans
            for scan in looked_up_in_part(plan["Plan"], place)
        }
        assert not found, f"analyzed: {is_analyzed}"


def test_plans_of_images(ddpm: Ddpm) -> None:
    """A place is looked up by all of its columns."""
    check_plans(ddpm, "ddpm_denoised", [], ("image_id", "step", "y", "x"))


def test_plans_of_texts(gpt2: Gpt2) -> None:
    """Of prompts, and of a step after them."""
    step = [
        f"update {gpt2.schema}.gpt2_completion_tokens set finish_reason = null",
        f"update {gpt2.schema}.gpt2_prompts "
        "set max_new_tokens = 30, finished_at = null",
        f"select {gpt2.schema}.gpt2_completion_tokens_step()",
    ]
    check_plans(gpt2, "gpt2_completion_tokens", step, ("sequence_id", "position"))


def test_what_runs_can_be_seen(dbt: Dbt, gpt2: Gpt2, tmp_path: Path) -> None:
    """The layer's function has the SELECT that compiled_kernels: fast shows."""
    layer = "gpt2_h_0_mlp_c_fc"
    dbt(
        *("compile", "--select", layer, "--exclude", "resource_type:test"),
        *("--vars", "{compiled_kernels: fast}", "--target-path", str(tmp_path)),
        env={"DBT_NN_SCHEMA": gpt2.schema},
    )
    [shown] = tmp_path.glob(f"compiled/**/{layer}.sql")
    [function] = gpt2.query(
        "select prosrc from pg_proc where oid = %s::regproc",
        [f"{gpt2.schema}_gpt2.{layer}_forward"],
    )
    select = shown.read_text("utf-8").strip()
    # a session may have relations of its own in the place of the network's
    named = re.sub(rf'"\w+"\."{gpt2.schema}(_gpt2)?"\.("\w+")', r"\2", select)
    assert named != select
    assert named in function["prosrc"]
