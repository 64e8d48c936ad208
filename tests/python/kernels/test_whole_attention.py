"""Attention over whole texts beside torch's, on random and on extreme numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from conftest import Dbt
from macros import copy_unit_tests, create_functions

SCHEMA = "test_whole_attention"
# Of the largest value: float32, and an exp() whose error is multiplied by up to 256.
TOLERANCE = 2e-5

MODEL = """
{{{{ config(
    materialized='table',
    meta={{'place': ['sequence_id', 'position'], 'history': 'renew'}},
) }}}}
{way}
{{{{ dbt_nn.attention(
    '{schema}.query',
    '{schema}.key',
    '{schema}.value',
    heads='(select n from {schema}.heads)',
) }}}}
"""
BAND = "{%- do model.update(dbt_nn_way='band', dbt_nn_said={}) -%}"

# What a layer's function sets: see create_forward_function().
SETTINGS = ("seqscan", "bitmapscan", "hashjoin", "mergejoin")

Texts = list[Tensor]  # [tokens, n] of each


@dataclass(frozen=True)
class Attention:
    """The SELECTs of the kernel, on tables of queries, keys, values."""

    connection: Connection
    selects: dict[str, str]  # fast, plain, band

    def write(self, name: str, texts: Texts) -> None:
        cursor = self.connection.cursor()
        cursor.execute(f"truncate {SCHEMA}.{name}")
        rows = [
            (number, position, str(x))
            for number, text in enumerate(texts)
            for position, x in enumerate(text.tolist())
        ]
        execute_values(
            cursor, f"insert into {SCHEMA}.{name} values %s", rows[::-1], page_size=100
        )

    def read(self, select: str, *parameters: object) -> dict[tuple[int, int], Tensor]:
        """Run a SELECT as a layer's function does."""
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

    def __call__(
        self, q: Texts, k: Texts, v: Texts, heads: int, form: str = "fast"
    ) -> Texts:
        for name, texts in (("query", q), ("key", k), ("value", v)):
            self.write(name, texts)
        cursor = self.connection.cursor()
        cursor.execute(f"truncate {SCHEMA}.heads")
        cursor.execute(f"insert into {SCHEMA}.heads values (%s)", [heads])
        found = self.read(self.selects[form])
        assert len(found) == sum(len(text) for text in q)
        return [
            torch.stack([found[number, place] for place in range(len(text))])
            for number, text in enumerate(q)
        ]


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
    cursor.execute(f"create table {SCHEMA}.heads (n integer)")
    folder = tmp_path_factory.mktemp("project")
    project = copy_unit_tests(dbt, folder)
    models = project / "models" / "attention"
    models.mkdir()
    for name, way in (("whole", ""), ("band", BAND)):
        (models / f"{name}.sql").write_text(
            MODEL.format(schema=SCHEMA, way=way), encoding="utf-8"
        )
    selects = compiled(dbt, project, folder / "fast", "fast")
    plain = compiled(dbt, project, folder / "plain", "plain")
    yield Attention(
        connection,
        {"fast": selects["whole"], "plain": plain["whole"], "band": selects["band"]},
    )
    cursor.execute(f"drop schema {SCHEMA} cascade")


def compiled(
    dbt: Dbt, project: Path, target: Path, kernels: str, schema: str = SCHEMA
) -> dict[str, str]:
    dbt(
        *("compile", "--select", "models/attention", "--no-introspect"),
        *("--project-dir", str(project), "--vars", f"{{kernels: {kernels}}}"),
        env={"DBT_NN_SCHEMA": schema, "DBT_TARGET_PATH": str(target)},
    )
    return {
        path.stem: path.read_text("utf-8")
        for path in target.glob("compiled/**/attention/*.sql")
    }


def random_texts(
    lengths: Sequence[int], n: int, seed: int
) -> tuple[Texts, Texts, Texts]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        [torch.randn((length, n), generator=generator) for length in lengths]
        for _ in range(3)
    )
    return q, k, v


def check(found: Texts, q: Texts, k: Texts, v: Texts, heads: int) -> None:
    """Compare with torch's attention in float64."""
    for number, ours in enumerate(found):
        shape = (len(q[number]), heads, -1)
        split = [x[number].double().view(shape).transpose(0, 1) for x in (q, k, v)]
        expected = scaled_dot_product_attention(*split).transpose(0, 1).flatten(1)
        difference = (ours - expected).abs()
        if not difference.max() <= TOLERANCE * v[number].abs().max():
            place, feature = divmod(int(difference.argmax()), expected.shape[1])
            shown = slice(max(feature - 2, 0), feature + 3)
            pytest.fail(
                f"text {number} of {len(ours)} tokens: largest difference "
                f"{difference.max():.3g} at place {place}, feature {feature}\n"
                f"  ours   {ours[place, shown]}\n"
                f"  torch  {expected[place, shown]}",
                pytrace=False,
            )


@pytest.mark.parametrize(
    ("heads", "size", "lengths"),
    [
        (12, 32, [1, 30, 64, 65, 300, 2]),
        (12, 64, [31, 7, 128, 129]),
        (5, 7, [1, 2, 3, 8, 9, 16, 17, 63, 64, 65, 127, 193, 257, 300]),
        (1, 1, [1, 5, 70]),
        (3, 65, [40, 66]),
        (1, 130, [20, 200]),
    ],
)
def test_random_texts(
    attention: Attention, heads: int, size: int, lengths: list[int]
) -> None:
    q, k, v = random_texts(lengths, heads * size, seed=size)
    check(attention(q, k, v, heads), q, k, v, heads)


def test_the_plain_form_is_the_same(attention: Attention) -> None:
    q, k, v = random_texts([1, 9, 33, 70], 3 * 7, seed=3)
    plain = attention(q, k, v, 3, form="plain")
    check(plain, q, k, v, 3)
    for ours, expected in zip(attention(q, k, v, 3), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE * 4)


@pytest.mark.parametrize("scale", [3.0, 6.0, 9.0, 30.0, 1e3, 1e6, 1e15])
def test_large_scores(attention: Attention, scale: float) -> None:
    """Some of a few hundred, and of all orders up to 1e30; beside texts of others."""
    q, k, v = random_texts([20, 100, 20], 3 * 8, seed=1)
    q[:2], k[:2] = [scale * x for x in q[:2]], [scale * x for x in k[:2]]
    check(attention(q, k, v, 3), q, k, v, 3)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e-8, 1e-19, 1e-23, 1e-38])
def test_small_numbers(attention: Attention, scale: float) -> None:
    """No product underflows, which pgvector takes for an error."""
    q, k, v = random_texts([1, 20, 100], 3 * 8, seed=2)
    q, k, v = ([scale * x for x in texts] for texts in (q, k, v))
    found = attention(q, k, v, 3)
    if scale > 1e-30:  # sums of what float32 holds in few digits
        check(found, q, k, v, 3)


def test_equal_scores(attention: Attention) -> None:
    """Each output is the mean of the text's values."""
    q, k, v = random_texts([1, 64, 150], 2 * 5, seed=4)
    k = [x[:1].expand_as(x) for x in k]
    found = attention(q, k, v, 2)
    check(found, q, k, v, 2)
    for ours, values in zip(found, v, strict=True):
        expected = values.mean(dim=0).expand_as(ours)
        torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


def test_one_score_above_all(attention: Attention) -> None:
    """A large one beside many that a norm of all of them is of."""
    for largest in (0.5, 20.0, 41.0, 43.0, 86.0, 1e4):
        q, k, v = random_texts([30, 70], 4, seed=5)
        q, k = ([torch.zeros_like(x) for x in texts] for texts in (q, k))
        for queries, keys in zip(q, k, strict=True):
            queries[3, 0], keys[7, 0] = 2.0, largest
            queries[4, 0] = -2.0
        check(attention(q, k, v, 1), q, k, v, 1)


def test_no_texts(attention: Attention) -> None:
    assert attention([], [], [], 2) == []


def test_bands(attention: Attention) -> None:
    """Every text is of one band, and the same to the bit."""
    q, k, v = random_texts([5, 80, 1, 33, 20, 64, 9, 2], 3 * 8, seed=6)
    attention(q, k, v, 3)
    alone = attention.read(attention.selects["fast"])
    for bands, share in ((1, 1.0), (2, 0.5), (3, 0.2), (4, 0.0)):
        parts = [
            attention.read(attention.selects["band"], band, bands, f"{share}::float8")
            for band in range(bands)
        ]
        assert sum(len(part) for part in parts) == len(alone)
        if share == 0.5:
            assert all(parts)
        for part in parts:
            for place, x in part.items():
                assert torch.equal(x, alone[place])
