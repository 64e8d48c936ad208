"""Steps take the weights from the session's memory, and are the same to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import Dbt, run_script
from dbt_nn import database
from dbt_nn import generate as generate_network
from runs import Gpt2, Row, copy_bare_project

NETWORK = "resident"
# more inputs of a layer than a page takes: three chunks
INNER = 4000
PROMPTS: list[Row] = [
    {"prompt_id": 1, "prompt_token_ids": [5, 6, 7]},
    {"prompt_id": 2, "prompt_token_ids": [9, 4, 2]},
]
TYPES = {"float32": "vector", "float16": "halfvec"}
NO_MEMORY: tuple[str | None, ...] = (None, "1kB")


def save(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=200, n_positions=64, n_embd=16, n_head=2, n_layer=2, n_inner=INNER,
        initializer_range=0.4, bos_token_id=0, eos_token_id=199,
    )  # fmt: skip
    network = GPT2LMHeadModel(config).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # they are zeros
            torch.nn.init.normal_(parameter, std=0.4)
    network.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: str) -> None:
    done = run_script(
        *("load_checkpoint.py", str(folder), "--name", NETWORK, "--dtype", dtype)
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=TYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def gpt2(
    dtype: str,
    dbt: Dbt,
    connection: Connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gpt2]:
    folder = save(tmp_path_factory.mktemp("checkpoint"), seed=1)
    project = copy_bare_project(tmp_path_factory.mktemp("project"))
    generate_network.write(
        project / "models" / NETWORK, generate_network.generate(folder, NETWORK)
    )
    load(folder, dtype)
    runs = Gpt2(
        dbt, connection, "test_resident", tmp_path_factory.mktemp("target"),
        network=NETWORK, project=project,
        variables={f"{NETWORK}_options": {"max_new_tokens": 8}},
    )  # fmt: skip
    yield runs
    runs.drop()
    runs.execute(f"drop schema {NETWORK} cascade")


def layers(gpt2: Gpt2) -> dict[str, str]:
    """A digest of each layer's rows, which are those of every position."""
    tables = gpt2.query(
        "select tablename as name from pg_tables where schemaname = %s",
        [f"{gpt2.schema}_{NETWORK}"],
    )
    assert len(tables) > 20
    return {
        table["name"]: gpt2.query(
            "select md5(string_agg(row::text, ' ' order by row::text)) as digest "
            f"from {gpt2.schema}_{NETWORK}.{table['name']} as row"
        )[0]["digest"]
        for table in tables
    }


def calls_in_a_step(gpt2: Gpt2) -> list[int]:
    """How often a step, which is rolled back, takes its products from memory.

    By the function for several texts, and by the one for a text alone.
    """
    model = f"{gpt2.schema}.{NETWORK}_completion_tokens"
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("set local track_functions = 'pl'")
        cursor.execute(f"update {model} set finish_reason = null")
        cursor.execute(
            f"update {gpt2.schema}.{NETWORK}_prompts "
            "set max_new_tokens = 30, finished_at = null"
        )
        schemas = f"{gpt2.schema}_{NETWORK}, {gpt2.schema}, public"
        cursor.execute(f"set local search_path = {schemas}")
        cursor.execute(f"select {model}_step()")
        calls = []
        for kind in ("resident", "resident_one"):
            cursor.execute(
                "select sum(pg_stat_get_xact_function_calls(oid)) from pg_proc "
                "where proname like %s and pronamespace = %s::regnamespace",
                [f"%\\_{kind}", f"{gpt2.schema}_{NETWORK}"],
            )
            [(found,)] = cursor.fetchall()
            calls.append(int(found or 0))
        connection.rollback()
    connection.close()
    return calls


@pytest.mark.parametrize("texts", [1, 2])
def test_same_to_the_bit(gpt2: Gpt2, texts: int) -> None:
    """Whether a step takes it, since the var allows so much memory, or not.

    The first text ends before the other does, which then goes on alone.
    """
    prompts = [{**row, "max_new_tokens": 9 - row["prompt_id"]} for row in PROMPTS]
    found = gpt2.complete(prompts[:texts], "--full-refresh")
    assert [len(row["tokens"]) for row in found.values()] == [8, 7][:texts]
    from_memory = layers(gpt2)
    # of the attention, of the perceptron, of the vocabulary
    matrices = 2 * (4 + 2) + 1
    calls = [0, matrices] if texts == 1 else [matrices, 0]
    assert calls_in_a_step(gpt2) == calls
    for memory in NO_MEMORY:
        gpt2.run("--full-refresh", resident_memory=memory)
        assert layers(gpt2) == from_memory
        assert calls_in_a_step(gpt2) == [0, 0]


def test_weights_that_are_loaded_anew(gpt2: Gpt2, dtype: str, tmp_path: Path) -> None:
    """The session that has the old ones takes the new ones."""
    gpt2.complete(PROMPTS[:1], "--full-refresh")
    weights = f"{NETWORK}.h_1_attn_c_proj"
    function = f"{gpt2.schema}_{NETWORK}.{NETWORK}_h_1_attn_c_proj_resident"
    x = f"array_fill(1, array[16])::{TYPES[dtype]}"

    def products() -> list[float]:
        alone = gpt2.query(f"select {function}_one({x}::vector)::real[] as y")[0]["y"]
        blocks = gpt2.query(
            f"select outputs::real[] as y from {function}(array[{x}::vector]) "
            "order by block"
        )
        assert alone == [y for block in blocks for y in block["y"]]
        return alone

    def expected() -> list[float]:
        return gpt2.query(
            f"select array(select (inner_product(weight, {x}) + bias)::real "
            f"from {weights} order by feature) as y"
        )[0]["y"]

    before = products()
    assert before == expected()
    load(save(tmp_path, seed=2), dtype)
    after = products()
    assert after == expected()
    assert after != before
    gpt2.execute(f"truncate {weights}")
    with pytest.raises(errors.DataException):  # a vector has one number at least
        products()
    gpt2.execute(f"drop table {weights}")
    with pytest.raises((errors.UndefinedTable, errors.UndefinedObject)):
        products()
