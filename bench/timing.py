"""Both sides' steps in turn, and what is said of their figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.cases import Pace, Step

UNSTEADY = 0.25  # of the other side's figure, by which it may move


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


Figures = list[list[float]]  # of a side's steps: those of each, by quantity


def figures(step: Step) -> list[float]:
    """Make a step; its figures."""
    step.before()
    started = time.perf_counter()
    result = step.run()
    seconds = time.perf_counter() - started
    return [*result] if step.measures else [seconds / step.units]


def in_turn(ours: Step, theirs: Step | None, pace: Pace) -> tuple[Figures, Figures]:
    """Figures of both sides' steps, made in turn.

    Each begins every second pair: what grows, or slows down, meets both alike.

    Returns:
        Those of ours and those of theirs, which are none where theirs is None.

    """
    sides = [step for step in (ours, theirs) if step is not None]
    found: tuple[Figures, Figures] = ([], [])
    for _ in range(pace.warm):
        for step in sides:
            figures(step)
    started = time.monotonic()
    for pair in range(pace.most):
        if pair >= pace.least and time.monotonic() - started > pace.seconds:
            break
        for side in range(len(sides))[:: -1 if pair % 2 else 1]:
            found[side].append(figures(sides[side]))
    return found


def moved(values: Sequence[float]) -> float:
    """How far a figure moved meanwhile, as a share: of medians of thirds."""
    parts = min(3, len(values))
    bounds = [len(values) * part // parts for part in range(parts + 1)]
    medians = [statistics.median(values[start:end]) for start, end in pairwise(bounds)]
    return max(medians) / min(medians) - 1
