"""What configuration files share: their bounds, defaults and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.files import MIB, CheckpointError, quoted

MAX_CONFIG_BYTES = MIB
MAX_CONFIG_DEPTH = 32


def unsupported(
    key: str, value: object, supported: str, where: str = "config.json"
) -> CheckpointError:
    """The error for an option of config.json that no model computes."""
    return CheckpointError(
        f"{where} says {key} = {quoted(value)}, which is not supported "
        f"({supported}). Choose a checkpoint without it."
    )


def completed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Add what diffusers takes for the keys that a file does not have.

    Keys in `_use_default_values`, which old files may have, count as missing.
    """
    unset = config.get("_use_default_values")
    unset = unset if isinstance(unset, list) else []
    return {
        **defaults,
        **{k: v for k, v in config.items() if k not in unset or k not in defaults},
    }


def check_value(value: object, path: Path, depth: int = 0) -> None:
    """Refuse what JSON allows and a database can't store as jsonb."""
    if depth > MAX_CONFIG_DEPTH:
        raise CheckpointError(
            f"{path} is nested more than {MAX_CONFIG_DEPTH} deep. Correct the "
            "configuration."
        )
    if isinstance(value, dict):
        for key, item in value.items():
            check_value(key, path, depth + 1)
            check_value(item, path, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_value(item, path, depth + 1)
    elif isinstance(value, str):
        if "\0" in value or any(
            "\ud800" <= character <= "\udfff" for character in value
        ):
            raise CheckpointError(
                f"{path} holds {quoted(value)}: a zero character or half a surrogate "
                "pair can't be stored. Correct the configuration."
            )
    elif isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{path} holds a number that is too large. Correct it.")
