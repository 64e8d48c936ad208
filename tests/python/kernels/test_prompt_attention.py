"""Causal attention over prompts: beside torch's, and the bits of a token by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from test_whole_attention import SETTINGS, Texts, compiled, random_texts
from torch.nn.functional import scaled_dot_product_attention

from conftest import Dbt
from macros import copy_unit_tests, create_functions

SCHEMA = "test_prompt_attention"
# Of the largest value: float32, and an exp() whose error is multiplied by up to 256.
TOLERANCE = 2e-5

CONFIG = """
{{{{ config(
    materialized='table',
    meta={{'place': ['sequence_id', 'position'], 'network': 'prompt'}},
) }}}}
{way}
"""
ATTENTION = """
{{{{ dbt_nn.attention(
    '{schema}.query',
    '{schema}.key',
    '{schema}.value',
    heads='(select n from {schema}.heads)',
    causal=true,
    blocks='{schema}.blocks',
) }}}}
"""
BLOCKS = """
{{{{ dbt_nn.attention_blocks(
    '{schema}.key', '{schema}.value', heads='(select n from {schema}.heads)'
) }}}}
"""
WAY = "{{%- do model.update(dbt_nn_way='{}', dbt_nn_said={{}}) -%}}"

Places = dict[tuple[int, int], torch.Tensor]


@dataclass(frozen=True)
class Attention:
    """The SELECTs of the kernel, on tables of queries, keys, values and blocks."""

    connection: Connection
    selects: dict[str, str]  # step, alone, band, blocks

    def write(self, q: Texts, k: Texts, v: Texts, heads: int) -> None:
        """Have all places at the frontier, and the blocks of keys and values."""
        cursor = self.connection.cursor()
        cursor.execute(
            f"truncate {SCHEMA}.prompt_frontier, {SCHEMA}.heads, {SCHEMA}.blocks"
        )
        for name, texts in (("query", q), ("key", k), ("value", v)):
            cursor.execute(f"truncate {SCHEMA}.{name}")
            rows = [
                (number, position, str(x))
                for number, text in enumerate(texts)
                for position, x in enumerate(text.tolist())
            ]
            execute_values(cursor, f"insert into {SCHEMA}.{name} values %s", rows[::-1])
        cursor.execute(
            f"insert into {SCHEMA}.prompt_frontier "
            f"select sequence_id, position from {SCHEMA}.query"
        )
        cursor.execute(f"insert into {SCHEMA}.heads values (%s)", [heads])
        cursor.execute(f"insert into {SCHEMA}.blocks {self.selects['blocks']}")

    def read(self, form: str, *parameters: object) -> Places:
        """Run a SELECT as a layer's function does."""
        select = self.selects[form]
        cursor = self.connection.cursor()
        for number, value in enumerate(parameters, start=1):
            select = select.replace(f"${number}", str(value))
        for name in SETTINGS:
            cursor.execute(f"set enable_{name} = off")
        try:
            cursor.execute(
                "select sequence_id, position, activation::real[] "
                f"from ({select}) as attention"
            )
            return {(text, place): torch.tensor(x) for text, place, x in cursor}
        finally:
            for name in SETTINGS:
                cursor.execute(f"reset enable_{name}")

    def check(self, q: Texts, k: Texts, v: Texts, heads: int) -> Places:
        """Compare with torch's in float64, and all forms with each other."""
        self.write(q, k, v, heads)
        found = self.read("alone")
        assert len(found) == sum(len(text) for text in q)
        step = self.read("step")
        assert found.keys() == step.keys()
        for place, x in step.items():
            assert torch.equal(found[place], x), place
        for number, values in enumerate(v):
            shape = (len(values), heads, -1)
            split = [x[number].double().view(shape).transpose(0, 1) for x in (q, k, v)]
            expected = scaled_dot_product_attention(*split, is_causal=True)
            expected = expected.transpose(0, 1).flatten(1)
            ours = torch.stack([found[number, i] for i in range(len(values))])
            difference = (ours - expected).abs()
            if not difference.max() <= TOLERANCE * values.abs().max():
                place, feature = divmod(int(difference.argmax()), expected.shape[1])
                shown = slice(max(feature - 2, 0), feature + 3)
                pytest.fail(
                    f"text {number} of {len(values)} tokens: largest difference "
                    f"{difference.max():.3g} at place {place}, feature {feature}\n"
                    f"  ours   {ours[place, shown]}\n"
                    f"  torch  {expected[place, shown]}",
                    pytrace=False,
                )
        return found


@pytest.fixture(scope="module")
def attention(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attention]:
    create_functions(dbt, SCHEMA, tmp_path_factory.mktemp("functions"))
    cursor = connection.cursor()
    for name in ("query", "key", "value"):
        cursor.execute(
            f"create table {SCHEMA}.{name} (sequence_id integer, position integer, "
            "activation vector, primary key (sequence_id, position))"
        )
    cursor.execute(
        f"create table {SCHEMA}.prompt_frontier (sequence_id integer, "
        "position integer, primary key (sequence_id, position))"
    )
    cursor.execute(f"create table {SCHEMA}.heads (n integer)")
    cursor.execute(
        f"create table {SCHEMA}.blocks (sequence_id integer, head integer, "
        "positions integer, part integer, block integer, x vector[], "
        "primary key (sequence_id, head, positions, part, block))"
    )
    folder = tmp_path_factory.mktemp("project")
    project = copy_unit_tests(dbt, folder)
    models = project / "models" / "attention"
    models.mkdir()
    (models / "prompt_frontier.sql").write_text(
        "{{ config(materialized='table') }} select 1 as sequence_id", "utf-8"
    )
    for name, way, select in (
        ("step", "", ATTENTION),
        ("alone", WAY.format("alone"), ATTENTION),
        ("band", WAY.format("band"), ATTENTION),
        ("blocks", "", BLOCKS),
    ):
        text = CONFIG.format(way=way) + select.format(schema=SCHEMA)
        (models / f"{name}.sql").write_text(text, "utf-8")
    yield Attention(connection, compiled(dbt, project, folder / "t", "fast", SCHEMA))
    cursor.execute(f"drop schema {SCHEMA} cascade")


@pytest.mark.parametrize(
    ("heads", "size", "lengths"),
    [
        (12, 64, [31, 7, 128]),
        (2, 32, [1, 14, 15, 16, 59, 60, 61, 64, 65, 119, 120, 256, 2]),
        (5, 7, [1, 2, 3, 8, 29, 30, 63, 66, 127, 193]),
        (1, 1, [1, 5, 70]),
        (3, 65, [40, 66]),
        (1, 130, [20, 130]),
        (1, 8, [1100]),
    ],
)
def test_random_texts(
    attention: Attention, heads: int, size: int, lengths: list[int]
) -> None:
    q, k, v = random_texts(lengths, heads * size, seed=size)
    attention.check(q, k, v, heads)


@pytest.mark.parametrize("scale", [3.0, 6.0, 9.0, 30.0, 1e3, 1e6, 1e15])
def test_large_scores(attention: Attention, scale: float) -> None:
    """Some of a few hundred, and of all orders up to 1e30; beside texts of others."""
    q, k, v = random_texts([20, 100, 20], 3 * 8, seed=1)
    q[:2], k[:2] = [scale * x for x in q[:2]], [scale * x for x in k[:2]]
    attention.check(q, k, v, 3)


def test_scores_with_a_large_mean(attention: Attention) -> None:
    """A softmax is of differences."""
    q, k, v = random_texts([70], 2 * 8, seed=7)
    q[0][:, 0], k[0][:, 0] = 20.0, 20.0
    q[0][:, 8], k[0][:, 8] = -20.0, 20.0
    attention.check(q, k, v, 2)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e-8, 1e-19, 1e-38])
def test_small_numbers(attention: Attention, scale: float) -> None:
    """No product underflows, which pgvector takes for an error."""
    q, k, v = random_texts([1, 20, 100], 3 * 8, seed=2)
    q, k = ([scale * x for x in texts] for texts in (q, k))
    attention.check(q, k, v, 3)
    attention.write(q, k, [scale * x for x in v], 3)
    attention.read("alone")


def test_one_score_above_all(attention: Attention) -> None:
    """A large one beside many, so that their weights and values hardly count."""
    for largest in (0.5, 20.0, 41.0, 43.0, 86.0, 1e4):
        q, k, v = random_texts([30, 70], 4, seed=5)
        q, k = ([torch.zeros_like(x) for x in texts] for texts in (q, k))
        for queries, keys in zip(q, k, strict=True):
            queries[10, 0], keys[7, 0] = 2.0, largest
            queries[20, 0] = -2.0
        v = [x * 10.0 ** torch.randint(-30, 1, x.shape) for x in v]
        attention.check(q, k, v, 1)


def test_no_texts(attention: Attention) -> None:
    attention.write([], [], [], 2)
    assert attention.read("alone") == {}
    assert attention.read("step") == {}


@pytest.mark.parametrize("shares", [(1, 1.0), (2, 0.5), (3, 0.2), (4, 0.0)])
def test_bands(attention: Attention, shares: Sequence[float]) -> None:
    """Every place is of one band, and the same to the bit."""
    q, k, v = random_texts([5, 80, 1, 133, 20], 3 * 8, seed=6)
    alone = attention.check(q, k, v, 3)
    bands, share = shares
    parts = [
        attention.read("band", band, bands, f"{share}::float8")
        for band in range(int(bands))
    ]
    assert sum(len(part) for part in parts) == len(alone)
    for part in parts:
        for place, x in part.items():
            assert torch.equal(x, alone[place])
