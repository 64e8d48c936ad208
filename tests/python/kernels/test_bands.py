"""A layer whose rows parallel workers share is the same as without them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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
