"""exp() of whole vectors beside torch.exp, over all of its range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from macros import create_functions, load_macros

SCHEMA = "test_exponential"
# Six terms of the series leave 1.2e-8 at 1/4.
FLOAT32 = 1.2e-7


@pytest.fixture(scope="module")
def macros(
    dbt: Dbt, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The macros, called outside dbt, and the functions that they call."""
    create_functions(dbt, SCHEMA, tmp_path_factory.mktemp("project"))
    yield load_macros(SCHEMA, "kernels/*.sql", "engines/postgres/fast/exponential.sql")
    connection.cursor().execute(f"drop schema {SCHEMA} cascade")


@pytest.mark.parametrize("bound", [0.0, 1e-30, 0.25, 0.26, 1.0, 7.5, 32.0])
def test_the_error_is_that_of_float32_and_the_squarings(
    connection: Connection, macros: Any, bound: float
) -> None:
    x = torch.linspace(-bound, bound, 1001, dtype=torch.float32)
    cursor = connection.cursor()
    cursor.execute(f"select {macros.exp_squarings(str(bound))}")
    [(squarings,)] = cursor.fetchall()
    assert bound / 2**squarings <= 0.25
    exponential = macros.vector_exp(
        f"%s::vector * {macros.broadcast(f'1 / 2.0 ^ {squarings}', '1001')}",
        macros.exp_coefficients("1001"),
        str(squarings),
    )
    cursor.execute(f"select {exponential}::real[]", (str(x.tolist()),))
    [(found,)] = cursor.fetchall()
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        x.double().exp(),
        rtol=2**squarings * FLOAT32,
        atol=0,
    )


def test_what_is_too_large_is_left_to_others(
    connection: Connection, macros: Any
) -> None:
    cursor = connection.cursor()
    for bound in ("32.1", "'inf'::float8", "'nan'::float8", "null::float8"):
        cursor.execute(f"select {macros.exp_squarings(bound)}")
        assert cursor.fetchone() == (None,)
