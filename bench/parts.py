"""The parts of the benchmarks, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.cases import Case
from bench.encoder import encoder
from bench.images import unet
from bench.llama import llama
from bench.runs import demo, fixed, loading, sessions
from bench.sizes import Sizes
from bench.texts import batch, bundled, decode, growth, half, larger, prefill

PARTS: dict[str, Callable[[Sizes], Iterator[Case]]] = {
    "decode": decode,
    "batch": batch,
    "prefill": prefill,
    "half": half,
    "growth": growth,
    "bundled": bundled,
    "larger": larger,
    "llama": llama,
    "unet": unet,
    "encoder": encoder,
    "load": loading,
    "fixed": fixed,
    "sessions": sessions,
    "demo": demo,
}
# Those of ten minutes, and of gigabytes, are run where they are named.
BY_NAME = ("larger", "llama", "sessions")
USUAL = tuple(part for part in PARTS if part not in BY_NAME)
# Of a change's parts those that kernels and the loop decide.
COMPARED_PARTS = ("decode", "batch", "prefill", "bundled", "unet", "encoder")


def listed() -> str:
    """The parts with a line each, for help."""
    return "\n".join(
        f"    {name:<9} {(part.__doc__ or '').splitlines()[0].rstrip('.')}"
        for name, part in PARTS.items()
    )
