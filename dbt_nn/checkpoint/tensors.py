"""Tensors in safetensors files: their names, shapes and places, and their weights.

The header is read by hand. The safetensors library has no bfloat16 without torch,
maps the whole file, and sets no bound to what a hostile header takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from dbt_nn.checkpoint.files import MIB, CheckpointError, parse_json, quoted, read_json

# GPT-2 XL, 580 tensors, has a header of 60 KB. The format's own limit, 100 MB,
# would let a hostile header take gigabytes once parsed.
MAX_HEADER_BYTES = 8 * MIB
MAX_SHARDS = 1000
# What one read of weights may hold in memory, as float32.
BLOCK_BYTES = 64 * MIB

# Bytes per element of the dtypes that a header may name. Only those in
# READABLE can be weights; the others occur in buffers that are ignored.
DTYPE_BYTES = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"], 1),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 2),
    **dict.fromkeys(["I32", "U32", "F32"], 4),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 8),
}
READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# named in the error of a checkpoint that has nothing else
OTHER_FORMATS = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"}


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in a safetensors file; no weight is in memory."""

    name: str
    path: Path
    file: BinaryIO = field(repr=False)
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * DTYPE_BYTES[self.dtype]

    def read(self, first: int, count: int) -> np.ndarray:
        """Read `count` elements from the flat index `first` -> float32 [count].

        Raises:
            CheckpointError: the file ends before them, or the disk fails.

        """
        raw = np.empty(count, dtype=READABLE[self.dtype])
        view = memoryview(raw).cast("B")
        try:
            self.file.seek(self.start + first * raw.itemsize)
            while view:
                got = self.file.readinto(view)
                if not got:
                    raise CheckpointError(
                        f"{self.path} ended while tensor {quoted(self.name)} was "
                        "read: it was cut short. Fetch the file again."
                    )
                view = view[got:]
        except OSError as error:
            raise CheckpointError(
                f"{self.path} can't be read ({error.strerror}) at tensor "
                f"{quoted(self.name)}. Check the disk and fetch the file again."
            ) from None
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32
            return (raw.astype("<u4") << 16).view("<f4")
        return raw.astype("<f4", copy=False)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Go through the tensor in order: (flat index, float32 [some])."""
        step = 4 * MIB
        for first in range(0, self.size, step):
            yield first, self.read(first, min(step, self.size - first))


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same weights."""
    if (
        left.shape != right.shape
        or left.dtype not in READABLE
        or right.dtype not in READABLE
    ):
        return False
    pairs = zip(left.blocks(), right.blocks(), strict=True)
    return all(np.array_equal(a, b) for (_, a), (_, b) in pairs)


def read_header(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    """Read and check a safetensors header: the tensors by name.

    The tensors must fill the file without gaps or overlaps, as the format
    asks, so a file that was cut short or tampered with is found here, in bounded
    time and memory. The safetensors library has the last word. It does not read
    the weights: it has no bfloat16 without torch, and it maps the file.

    Raises:
        CheckpointError: anything that breaks the format, or a header of more
            than MAX_HEADER_BYTES.

    """
    file.seek(0, 2)
    file_bytes = file.tell()
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _bad(path, f"it has {file_bytes} bytes, too few for a header")
    header_bytes = int.from_bytes(prefix, "little")
    claim = f"its header claims {header_bytes} bytes"
    if header_bytes > file_bytes - 8:
        raise _bad(path, f"{claim}, but the file has {file_bytes}")
    if header_bytes > MAX_HEADER_BYTES:
        raise _bad(path, f"{claim}; {MAX_HEADER_BYTES} is the limit")
    header = parse_json(file.read(header_bytes), f"The header of {path}")
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise _bad(path, "its __metadata__ is not an object")
    data = 8 + header_bytes
    tensors = {}
    for name, entry in header.items():
        tensor = tensors[name] = _described(name, entry, path, file, data)
        end = tensor.start + tensor.nbytes
        if end > file_bytes:
            raise _bad(
                path,
                f"tensor {quoted(name)} should end at byte {end}, but the file has "
                f"{file_bytes} bytes",
            )
    _check_places(path, tensors, data, file_bytes)
    _check_names(path, tensors, file_bytes)
    return tensors


def _bad(path: Path, what: str) -> CheckpointError:
    """The error for a file that breaks the format."""
    return CheckpointError(
        f"{path} is not a valid safetensors file: {what}. It may be cut short "
        "or damaged: fetch it again, or save the checkpoint again."
    )


def _described(
    name: str, entry: object, path: Path, file: BinaryIO, data: int
) -> Tensor:
    """A tensor as its entry in the header describes it; `data` is where data begin."""
    tensor = f"tensor {quoted(name)}"
    if not isinstance(entry, dict):
        raise _bad(path, f"{tensor} has no description")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    offsets = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{path}: {tensor} has dtype {quoted(dtype)}, which is not "
            "supported. Weights may be F32, F16 or BF16: convert the "
            "checkpoint to one of them."
        )
    if not _sizes(shape) or len(shape) > 8:
        raise _bad(path, f"{tensor} has shape {quoted(shape)}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"{tensor} has data_offsets {quoted(offsets)}")
    if math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise _bad(
            path,
            f"{tensor} of shape {quoted(shape)} and dtype {dtype} does not fill "
            f"its {offsets[1] - offsets[0]} bytes",
        )
    return Tensor(name, path, file, dtype, tuple(shape), data + offsets[0])


def _check_places(
    path: Path, tensors: dict[str, Tensor], data: int, file_bytes: int
) -> None:
    """Check that the tensors fill the file, one after another."""
    end = data
    for first, size, name in sorted(
        (t.start, t.nbytes, t.name) for t in tensors.values()
    ):
        if first != end:
            raise _bad(
                path,
                f"tensor {quoted(name)} starts at byte {first - data} of the data, "
                f"where {end - data} is expected (an overlap or a gap)",
            )
        end += size
    if end != file_bytes:
        raise _bad(path, f"{file_bytes - end} bytes follow the last tensor")


def _check_names(path: Path, tensors: dict[str, Tensor], file_bytes: int) -> None:
    """Check that the safetensors library reads the same tensors."""
    try:
        with safe_open(path, framework="numpy") as reference:
            known = set(reference.keys())
    except SafetensorError as error:
        raise _bad(path, f"the safetensors library refuses it ({error})") from None
    except (MemoryError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be mapped into memory ({error}). Check that its "
            f"{file_bytes} bytes are what you expect, and the limit of this process's "
            "address space (ulimit -v)."
        ) from None
    if known != set(tensors):
        raise _bad(path, "the safetensors library reads other tensors from it")


def _sizes(value: object) -> bool:
    """Whether `value` is a list of integers that fit in 63 bits, none negative."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )


def find_weights(folder: Path, stem: str, convert: str) -> list[Path]:
    """Find the safetensors files of a checkpoint: one, or the shards of an index.

    Args:
        folder: where they are.
        stem: their name without a suffix.
        convert: how to save them from another format, for the error.

    Raises:
        CheckpointError: none, several without an index, or a shard is missing.

    """
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(
            f"{folder} has {len(found)} safetensors files ({found[0].name}, "
            f"{found[1].name} ...) but no {index.name} that says how they belong "
            "together. Fetch the index, or keep one file in the folder."
        )
    others = sorted(p.name for p in folder.iterdir() if p.suffix in OTHER_FORMATS)
    seen = f" (it has {', '.join(others[:3])})" if others else ""
    raise CheckpointError(
        f"{folder} has no safetensors file{seen}. Only safetensors are read: a pickle "
        "can run code when it is opened. Convert a checkpoint that you trust with "
        f"{convert}, then load FOLDER."
    )


def _shards(index: Path) -> list[Path]:
    """List the shards that an index names, each once."""
    weight_map = read_json(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map, so its shards are unknown. Fetch it again."
        )
    names: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(
            r"[\w-][\w.-]*\.safetensors", name
        ):
            raise CheckpointError(
                f"{index} places tensor {quoted(tensor)} in {quoted(name)}, which is "
                "not the name of a safetensors file in its own folder. Fetch it again."
            )
        names.setdefault(name, tensor)
    if len(names) > MAX_SHARDS:
        raise CheckpointError(
            f"{index} names {len(names)} shards; {MAX_SHARDS} is the limit."
        )
    for name, tensor in names.items():
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"The shard {name}, which {index} names (for tensor {quoted(tensor)}), "
                "is missing. Fetch it into the same folder."
            )
    return [index.parent / name for name in sorted(names)]
