"""Untrusted files: read in bounds, and JSON that is one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dbt_nn.command_line import ExpectedError

MIB = 1 << 20


class CheckpointError(ExpectedError):
    """A checkpoint that can't be loaded; the message is for the user."""


def quoted(name: object) -> str:
    """Show an untrusted name on one line, shortened."""
    text = repr(name)
    return text if len(text) <= 120 else text[:110] + "...'"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing keys that occur twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quoted(key)} occurs twice")
            seen.add(key)
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def parse_json(text: bytes, what: str, kind: type = dict) -> Any:
    """Parse untrusted bytes that must hold one JSON object, or a list.

    Raises:
        CheckpointError: not UTF-8, not JSON, nested too deeply, a key twice,
            or something other than `kind`.

    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON ({error}). Fetch the checkpoint again."
        ) from None
    if not isinstance(value, kind):
        wanted = "object" if kind is dict else "list"
        raise CheckpointError(
            f"{what} should hold a JSON {wanted}, but holds a "
            f"{type(value).__name__}. Fetch the checkpoint again."
        )
    return value


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), str(path))


def read_json_list(path: Path, limit: int) -> list[Any]:
    """Read a JSON list from a file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), str(path), list)


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror}. Check the file and its rights."
        ) from None
    if len(content) > limit:
        raise CheckpointError(
            f"{path} is larger than {limit // MIB} MiB, which no checkpoint of "
            "this kind needs. Check that it is the file you mean."
        )
    return content
