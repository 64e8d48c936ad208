"""Rotary positions: what config.json says of them, in either spelling.

Transformers 4 writes rope_theta, and rope_scaling with the rest; transformers 5 writes
rope_parameters with all. The macro rotary_embedding() reads what `completed` gives.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dbt_nn.checkpoint.config import unsupported
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.networks.config import Config, whole

# What each type needs.
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
THETA = 10_000.0


def number(description: str, default: float | None = None, **bounds: float) -> Any:
    """A field of a number that a file may lack."""
    return Field(default, description=f"{description} is", **bounds)


class RopeParameters(Config):
    """The keys of transformers' RopeParameters."""

    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    rope_theta: float = number("a number above 1", THETA, gt=1)
    factor: float | None = number("a number from 1 on", ge=1)
    original_max_position_embeddings: int | None = whole(None)
    low_freq_factor: float | None = number("a number above 0", gt=0)
    high_freq_factor: float | None = number("a number above 0", gt=0)
    beta_fast: float | None = number("a number above 0", gt=0)
    beta_slow: float | None = number("a number above 0", gt=0)
    attention_factor: float | None = number("a number above 0", gt=0)
    mscale: float | None = number("a number from 0 on", ge=0)
    mscale_all_dim: float | None = number("a number from 0 on", ge=0)
    truncate: bool = True
    partial_rotary_factor: float | None = number("only 1", ge=1, le=1)

    @model_validator(mode="after")
    def type_has_what_it_needs(self) -> Self:
        for key in NEEDED.get(self.rope_type, ()):
            if getattr(self, key) is None:
                raise CheckpointError(
                    f"config.json says nothing for {key}, which the rope type "
                    f"{self.rope_type} needs (a number is). Use the file that belongs "
                    "to the checkpoint."
                )
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            supported = f"a number above low_freq_factor, {self.low_freq_factor}, is"
            raise unsupported("high_freq_factor", self.high_freq_factor, supported)
        return self

    @property
    def yarn_scale(self) -> float:
        """What yarn multiplies cosines and sines by, where the file does not say it."""

        def scale(mscale: float = 1) -> float:
            if self.factor <= 1:
                return 1.0
            return 0.1 * mscale * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return scale(self.mscale) / scale(self.mscale_all_dim)
        return scale()


def completed(content: dict[str, Any]) -> dict[str, Any]:
    """A config.json whose rope_parameters have all that the rope type needs.

    Its max_position_embeddings is the length that the scaling is for: `factor` times
    the original one for `dynamic`, which begins beyond that, and at least that for
    `yarn`.

    Raises:
        CheckpointError: rope parameters that are not supported.

    """
    key = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    given = content.get(key) or {}
    if not isinstance(given, dict) or any(isinstance(v, dict) for v in given.values()):
        raise unsupported(key, given, "one object for all layers is")
    for name in ("rope_theta", "partial_rotary_factor"):
        if content.get(name) is not None:
            given = {name: content[name], **given}
    if given.get("rope_type") is None:
        given = {**given, "rope_type": given.get("type") or "default"}
    rope = RopeParameters.read(given, f"{key} of config.json")
    stored = {k: v for k, v in rope.model_dump().items() if v is not None}
    length = content.get("max_position_embeddings")
    if type(length) is int and rope.rope_type != "default":
        original = content.get("original_max_position_embeddings")
        original = original or rope.original_max_position_embeddings
        if rope.rope_type == "dynamic" or type(original) is not int:
            original = length
        stored["original_max_position_embeddings"] = original
        if rope.rope_type in ("dynamic", "yarn"):
            length = max(length, int(original * rope.factor))
    if rope.rope_type == "yarn":
        defaults = {"beta_fast": 32.0, "beta_slow": 1.0}
        scale = {"attention_factor": rope.yarn_scale}
        stored = defaults | scale | stored
    else:
        stored.pop("attention_factor", None)
    return {**content, "rope_parameters": stored, "max_position_embeddings": length}
