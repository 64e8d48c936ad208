"""What a part of the benchmarks is made of: cases, whose two sides make steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.project import Project


class Unavailable(Exception):
    """What a case needs is not to be had here: it has no row."""


def nothing() -> None:
    """Do nothing before a step."""


@dataclass(frozen=True)
class Step:
    """What one side does, again and again.

    Attributes:
        run: what is timed.
        before: is called before each, untimed.
        units: the seconds are divided by them: tokens, texts, millions of weights.
        measures: whether run returns the figures itself, one for each quantity of its
            case, in place of the seconds that it takes.

    """

    run: Callable[[], object]
    before: Callable[[], object] = nothing
    units: float = 1
    measures: bool = False


@dataclass(frozen=True)
class Pace:
    """How many pairs of steps are made.

    Attributes:
        warm: before those that count: the first plan statements and fill caches.
        least, most: that count.
        seconds: after which no pair begins, once there are enough.

    """

    warm: int = 1
    least: int = 5
    most: int = 16
    seconds: float = 20


@dataclass(frozen=True)
class Quantity:
    """One of the figures of a step.

    Attributes:
        key: of its row, after the case's.
        what: said of it, after the case's words.
        unit: s or MiB.

    """

    key: str = ""
    what: str = ""
    unit: str = "s"


Side = Callable[["Project"], Step]


@dataclass(frozen=True)
class Case:
    """What is measured together: a row of the table for each quantity.

    Attributes:
        key: its name in targets.yml and in the results.
        what, beside: what is measured, and with what it is compared.
        ours: makes all ready, and gives the step of this project.
        theirs: the same of what is beside it; None where nothing is.
        quantities: of a step; by default the seconds that it takes.
        pace: of its pairs.
        repeats: how often it is measured again, if the other side was not steady.

    """

    key: str
    what: str
    beside: str
    ours: Side
    theirs: Side | None
    quantities: tuple[Quantity, ...] = (Quantity(),)
    pace: Pace = Pace()
    repeats: int = 2

    def rows(self) -> list[tuple[str, str, str]]:
        """Key, words and unit of each row."""
        return [
            (
                f"{self.key}.{quantity.key}" if quantity.key else self.key,
                f"{self.what}: {quantity.what}" if quantity.what else self.what,
                quantity.unit,
            )
            for quantity in self.quantities
        ]
