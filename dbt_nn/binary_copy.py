"""Weights as PostgreSQL's binary COPY takes them.

The format is written by hand, a numpy record a row: no driver packs a million rows of
pgvector's types without an object for each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from dbt_nn.checkpoint.files import MIB, CheckpointError
from dbt_nn.checkpoint.folder import Checkpoint, Progress
from dbt_nn.checkpoint.tensors import BLOCK_BYTES, DTYPE_BYTES
from dbt_nn.networks.modules import Matrix, Norm

# Floats of one row: 1,920 of them and the row's other columns fit a page of
# 8 KiB, so that no weight is ever toasted.
CHUNK = 1920
# Blocks of about 1 MiB that are packed while the server takes earlier ones.
AHEAD = 32
# What --dtype takes, and pgvector's type for it.
DTYPES = {"float32": "vector", "float16": "halfvec"}
MAX_HALF = float(np.finfo(np.float16).max)
Item = TypeVar("Item")

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


class Stream:
    """Hands out blocks, in order, to `copy_expert`, which reads it like a file."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        """Take blocks of any size."""
        self._blocks = iter(blocks)
        self._rest = b""
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Return the next block or, if it is longer than `size`, its beginning."""
        try:
            block = self._rest or next(self._blocks, b"")
        except BaseException as error:
            self.error = error
            raise
        self._rest = block[size:]
        return block[:size] if self._rest else block


def chunks(inputs: int) -> list[tuple[int, int]]:
    """Split a row of `inputs` floats: [first, last) of each chunk."""
    size = math.ceil(inputs / math.ceil(inputs / CHUNK))
    return [(at, min(inputs, at + size)) for at in range(0, inputs, size)]


def pack_rows(
    chunk: int,
    first: int,
    weight: np.ndarray,
    bias: np.ndarray,
    dtype: str = "float32",
) -> np.ndarray:
    """Pack rows of a linear module for COPY.

    Args:
        chunk: the chunk of inputs that these rows hold.
        first: the output feature of the first row.
        weight: float32 [rows, floats].
        bias: float32 [rows].
        dtype: of the packed weight, one of DTYPES.

    Returns:
        A packed record array [rows]: (chunk int, feature int, weight vector or
        halfvec, bias real), each field preceded by its length, as pgvector's
        `vector_recv` and `halfvec_recv` and Postgres read them (big-endian).

    """
    rows, floats = weight.shape
    element = np.dtype(dtype).newbyteorder(">")
    record = np.dtype(
        [
            ("fields", ">i2"),
            ("chunk_bytes", ">i4"),
            ("chunk", ">i4"),
            ("feature_bytes", ">i4"),
            ("feature", ">i4"),
            ("weight_bytes", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("weight", element, (floats,)),
            ("bias_bytes", ">i4"),
            ("bias", ">f4"),
        ]
    )
    packed = np.empty(rows, dtype=record)
    packed["fields"] = 4
    packed["chunk_bytes"] = packed["feature_bytes"] = packed["bias_bytes"] = 4
    packed["chunk"] = chunk
    packed["feature"] = np.arange(first, first + rows)
    packed["weight_bytes"] = 4 + element.itemsize * floats
    packed["dimensions"] = floats
    packed["unused"] = 0
    packed["weight"] = weight
    packed["bias"] = bias
    return packed


def stored_dtype(matrix: Matrix, checkpoint: Checkpoint, dtype: str | None) -> str:
    """The type that a linear module's weights are stored in, one of DTYPES.

    Where none is asked for that is float32. Of a network that stores halves it is
    float16, if the file has 16 bits and float16 has them in its range.
    """
    if dtype is not None:
        return dtype
    is_half = (
        checkpoint.family.stores_halves
        and DTYPE_BYTES[checkpoint.tensors[matrix.weight].dtype] == 2
        and checkpoint.largest.get(matrix.weight, 0) <= MAX_HALF
    )
    return "float16" if is_half else "float32"


def stored_dtypes(checkpoint: Checkpoint, dtype: str | None) -> dict[str, list[str]]:
    """The weights that are stored in each of these types, by their names."""
    found: dict[str, list[str]] = {}
    for module in checkpoint.modules:
        if isinstance(module, Matrix):
            kind = stored_dtype(module, checkpoint, dtype)
            found.setdefault(kind, []).append(module.weight)
    return found


def matrix_blocks(
    matrix: Matrix, checkpoint: Checkpoint, step: Progress, dtype: str | None
) -> Iterator[bytes]:
    """Pack a linear module for COPY, in (chunk, feature) order.

    At most two blocks of BLOCK_BYTES are in memory.

    Raises:
        CheckpointError: a weight is too large for `dtype`.

    """
    tensors = checkpoint.tensors
    dtype = stored_dtype(matrix, checkpoint, dtype)
    bias = matrix.read_bias(tensors)
    itemsize = DTYPE_BYTES[tensors[matrix.weight].dtype]
    height = max(1, BLOCK_BYTES // (4 * matrix.inputs))
    whole = (
        matrix.read(tensors, 0, matrix.outputs) if height >= matrix.outputs else None
    )
    yield HEADER
    for chunk, (first, last) in enumerate(chunks(matrix.inputs)):
        if chunk == 1:
            bias = np.zeros_like(bias)
        rows = max(1, MIB // (4 * (last - first) + 32))
        for top in range(0, matrix.outputs, height):
            bottom = min(top + height, matrix.outputs)
            block = matrix.read(tensors, top, bottom) if whole is None else whole
            for begin in range(top, bottom, rows):
                end = min(begin + rows, bottom)
                weight = block[begin - top : end - top, first:last]
                if dtype == "float16" and (largest := abs(weight).max()) > MAX_HALF:
                    raise CheckpointError(
                        f"{matrix.weight} has an element of size {largest:g}, and "
                        f"float16 holds {MAX_HALF:,.0f}. Load it without --dtype "
                        "float16."
                    )
                packed = pack_rows(chunk, begin, weight, bias[begin:end], dtype)
                yield packed.tobytes()
                step(weight.size * itemsize)
    yield TRAILER


def norm_blocks(norm: Norm, checkpoint: Checkpoint, step: Progress) -> Iterator[bytes]:
    """Pack a norm for COPY: one row of two vectors."""
    yield HEADER + (2).to_bytes(2, "big")
    for name in (norm.weight, norm.bias):
        tensor = checkpoint.tensors[name] if name else None
        weights = tensor.read(0, norm.size) if tensor else np.zeros(norm.size)
        values = weights.astype(">f4").tobytes()
        length, size = (
            (4 + len(values)).to_bytes(4, "big"),
            norm.size.to_bytes(2, "big"),
        )
        yield length + size + bytes(2) + values
        step(tensor.nbytes if tensor else 0)
    yield TRAILER


def module_blocks(
    checkpoint: Checkpoint, step: Progress, dtype: str | None
) -> Iterator[bytes | None]:
    """Pack the modules that are tables, one after the other, None after each."""
    for module in checkpoint.modules:
        if isinstance(module, Matrix):
            yield from matrix_blocks(module, checkpoint, step, dtype)
        elif isinstance(module, Norm):
            yield from norm_blocks(module, checkpoint, step)
        else:
            continue
        yield None


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, while a thread makes the next AHEAD of them."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(AHEAD))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
