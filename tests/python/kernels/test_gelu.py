"""Activation functions beside transformers and torch, some of whole vectors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from psycopg2.extensions import connection as Connection
from transformers.activations import ACT2FN

from conftest import Dbt
from macros import create_functions, load_macros

SCHEMA = "test_gelu"
# Of the largest number. GELU is x times a factor that 26 operations in float32 leave
# off by 1e-7: gelu(-26), which should be 0, by 1.6e-6 beside gelu(1). SiLU's is off by
# 4e-7: silu(-16) by 6e-6.
TOLERANCE = {"vector_gelu": 2e-6, "vector_gelu_new": 2e-6, "vector_silu": 7e-6}
# Below 2^-68 a number counts as 0, see flushed().
NEAR_ZERO = 4e-21

NAMES = (
    "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh",
    "gelu_fast", "gelu_accurate", "silu", "swish", "relu", "sigmoid", "tanh", "linear",
)  # fmt: skip
FAST = {
    "vector_gelu": torch.nn.functional.gelu,
    "vector_gelu_new": partial(torch.nn.functional.gelu, approximate="tanh"),
    "vector_silu": torch.nn.functional.silu,
}
SMALLEST = 2.0**-149
LARGEST = 2.0**127
# some at the bounds of the polynomials, 12, 16 and 26, and where rounding ends
EDGES = (
    *(0.0, SMALLEST, 1e-40, 1e-30, 1e-21, 2.0**-68, 2.0**-44, 1e-8),
    *(11.9, 12.0, 12.1, 12.6, 13.1, 15.9, 16.0, 16.1, 17.1, 25.9, 26.0, 26.1, 27.1),
    *(31.1, 1e4, 1e30, LARGEST),
)


@pytest.fixture(scope="module")
def macros(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The macros, called outside dbt, and the functions that they call."""
    create_functions(dbt, SCHEMA, tmp_path_factory.mktemp("project"))
    yield load_macros(SCHEMA, "kernels/*.sql", "engines/postgres/fast/elementwise.sql")
    connection.cursor().execute(f"drop schema {SCHEMA} cascade")


def compute(connection: Connection, expression: str, x: torch.Tensor) -> torch.Tensor:
    """The numbers of an expression of the vector x."""
    cursor = connection.cursor()
    cursor.execute(
        f"select ({expression})::real[] from (select %s::vector as x) as given",
        (str(x.tolist()),),
    )
    [(found,)] = cursor.fetchall()
    return torch.tensor(found, dtype=torch.float32).double()


def check(
    function: str, found: torch.Tensor, expected: torch.Tensor, case: str
) -> None:
    assert found.shape == expected.shape, case
    difference = (found - expected).abs()
    largest = expected.abs().max().item()
    if not difference.max() <= TOLERANCE[function] * largest + NEAR_ZERO:
        place = int(difference.argmax())
        shown = slice(max(place - 2, 0), place + 3)
        pytest.fail(
            f"{case}: largest difference {difference.max():.3g} of {largest:.3g}, at "
            f"{place}\n  found     {found[shown]}\n  expected  {expected[shown]}",
            pytrace=False,
        )


@pytest.mark.parametrize("name", NAMES)
def test_named_functions_are_those_of_transformers(
    connection: Connection, macros: Any, name: str
) -> None:
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e6, -1e3, 1e3, 1e6])])
    found = compute(connection, macros.one_by_one(name, "given.x"), x)
    torch.testing.assert_close(found, ACT2FN[name](x.double()), rtol=1e-6, atol=1e-7)


def test_identity_is_as_in_torch(connection: Connection, macros: Any) -> None:
    x = torch.linspace(-30, 30, 601)
    found = compute(connection, macros.one_by_one("identity", "given.x"), x)
    assert torch.equal(found, x.double())


@pytest.mark.parametrize("n", [1, 5, 127, 128, 768, 1000, 1536, 3072, 16000])
@pytest.mark.parametrize("function", FAST)
def test_vectors_of_any_length(
    connection: Connection, macros: Any, function: str, n: int
) -> None:
    """Of normal numbers, narrow and wide; some numbers are far from the others."""
    generator = torch.Generator().manual_seed(n)
    for scale in (0.0, 1e-15, 1e-3, 0.3, 1.0, 3.0, 7.0, 1e3, 1e30):
        x = torch.randn(n, generator=generator) * scale
        for outlier in (None, -300.0, 1e9):
            if outlier:
                x[n // 2] = outlier
            check(
                function,
                compute(connection, f"{SCHEMA}.{function}(given.x)", x),
                FAST[function](x.double()),
                f"{n} numbers of scale {scale}, outlier {outlier}",
            )


@pytest.mark.parametrize("function", FAST)
def test_every_number_has_its_own(
    connection: Connection, macros: Any, function: str
) -> None:
    """The largest is about 1: so the error is that of each number, from -26 to 2."""
    for start, end in ((-26, -10), (-10, -4), (-4, -1), (-1, 0), (0, 1), (1, 2)):
        x = torch.cat([torch.linspace(start, end, 15_999), torch.ones(1)])
        check(
            function,
            compute(connection, f"{SCHEMA}.{function}(given.x)", x),
            FAST[function](x.double()),
            f"from {start} to {end}",
        )


@pytest.mark.parametrize("n", [5, 768, 1000])
@pytest.mark.parametrize("function", FAST)
def test_no_number_is_an_error(
    connection: Connection, macros: Any, function: str, n: int
) -> None:
    """A number among ones, or alone, in either sign."""
    for edge in (sign * edge for edge in EDGES for sign in (1, -1)):
        x = torch.ones(n)
        x[n // 3] = edge
        check(
            function,
            compute(connection, f"{SCHEMA}.{function}(given.x)", x),
            FAST[function](x.double()),
            f"{edge} among ones",
        )
        x = torch.full((n,), edge)
        found = compute(connection, f"{SCHEMA}.{function}(given.x)", x)
        expected = FAST[function](x.double())
        difference = (found - expected).abs().max()
        assert difference <= TOLERANCE[function] * abs(edge) + NEAR_ZERO, f"only {edge}"
