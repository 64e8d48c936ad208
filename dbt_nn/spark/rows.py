"""Rows between Arrow and PostgreSQL.

PostgreSQL's text has no character U+0000, and is UTF-8. Spark's string may be anything:
a row with what PostgreSQL can't hold has an error instead of a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extras import Json, execute_values

from dbt_nn.spark.plan import INPUT, SCHEMA, Column

SLICE_BYTES = 16 << 20  # of the texts of a slice, about

# Types that are read as another one: psycopg2 knows its values.
READ_AS = {"jsonb": "text", "json": "text", "uuid": "text"}


@dataclass
class Slice:
    """Rows that are computed together."""

    rows: list[tuple[Any, ...]]
    keys: list[Any]  # of those rows
    bad: list[tuple[Any, str]]  # keys and errors of those that can't be read
    digests: dict[Any, str]


def slices(
    batch: pa.RecordBatch, columns: Sequence[Column], size: int
) -> Iterator[Slice]:
    """A batch's rows, so many that they fit the memory.

    Args:
        batch: the DataFrame's columns in this order, and maybe a column of digests.
        columns: of the relation; the first is the key.
        size: rows of a slice at most.

    """
    begin = 0
    while begin < batch.num_rows:
        end = min(begin + size, batch.num_rows)
        while end - begin > 1 and batch.slice(begin, end - begin).nbytes > SLICE_BYTES:
            end = begin + (end - begin) // 2
        yield _slice(batch.slice(begin, end - begin), columns)
        begin = end


def _slice(batch: pa.RecordBatch, columns: Sequence[Column]) -> Slice:
    values = [
        [_read(element, column) for element in batch.column(number)]
        for number, column in enumerate(columns)
    ]
    made = Slice([], [], [], {})
    digests = None
    if batch.num_columns > len(columns):
        digests = batch.column(len(columns)).to_pylist()
    for number, row in enumerate(zip(*values, strict=True)):
        key = row[0].shown if isinstance(row[0], Unreadable) else row[0]
        problem = next((v.problem for v in row if isinstance(v, Unreadable)), None)
        if problem:
            made.bad.append((key, problem))
        else:
            made.rows.append(row)
            made.keys.append(key)
        if digests:
            made.digests[comparable(key)] = digests[number]
    return made


def comparable(key: Any) -> Any:
    """A key as it may be looked up, whether Arrow or PostgreSQL gave it."""
    if isinstance(key, float):
        return float(np.float32(key))  # a real is another float8 in each
    return bytes(key) if isinstance(key, memoryview) else key


@dataclass(frozen=True)
class Unreadable:
    """A value that PostgreSQL can't hold."""

    problem: str
    shown: Any = None


def _read(element: pa.Scalar, column: Column) -> Any:
    """An element as psycopg2 takes it, or an Unreadable."""
    try:
        value = element.as_py()
    except UnicodeDecodeError as error:
        shown = None
        if pa.types.is_string(element.type) or pa.types.is_large_string(element.type):
            shown = element.cast(pa.binary()).as_py().decode(errors="backslashreplace")
        return Unreadable(
            f"{column.as_name} is not UTF-8: byte 0x{error.object[error.start]:02x} "
            f"at {error.start}",
            shown,
        )
    if value is None or isinstance(value, int | float | bytes):
        return value
    if isinstance(value, str):
        if "\0" not in value:
            return value
    elif "\0" not in _texts(value):
        return Json(value, dumps=_json) if column.type == "jsonb" else value
    problem = "has the character U+0000, which PostgreSQL's text can't hold"
    return Unreadable(f"{column.as_name} {problem}", value)


def _texts(value: Any) -> str:
    """All texts in a list, a struct or a map."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(_texts(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return "".join(_texts(part) for part in value)
    return ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def insert(
    cursor: psycopg2.extensions.cursor,
    columns: Sequence[Column],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Write rows into the relation that the network reads."""
    statement = sql.SQL("insert into {} ({}) values %s").format(
        sql.Identifier(SCHEMA, INPUT),
        sql.SQL(", ").join(sql.Identifier(column.as_name) for column in columns),
    )
    types = ", ".join(f"%s::{column.type}" for column in columns)
    execute_values(cursor, statement.as_string(cursor), rows, f"({types})", 200)


def select_list(columns: Sequence[Column]) -> str:
    """The columns of results, in types that psycopg2 reads."""
    parts = []
    for column in columns:
        name, kind = f'"{column.name}"', column.type
        base = kind.split("(")[0].rpartition(".")[2]
        if base in ("vector", "halfvec"):
            parts.append(f"{name}::real[]")
        else:
            parts.append(f"{name}::{READ_AS[kind]}" if kind in READ_AS else name)
    return ", ".join(parts)


def to_batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of results as Spark takes them."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [
        pa.array([bytes(v) if isinstance(v, memoryview) else v for v in column], kind)
        for column, kind in zip(columns, schema.types, strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)
