"""Rows of the table, the file that keeps them, and the block of docs/benchmarks.md.

bench/results.json holds the newest row of each key, and the runs that made them. All
are of one machine. The table is made from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bench.cases import Case
from bench.machine import Facts
from bench.timing import UNSTEADY, Figures, Spread, moved
from dbt_nn.database import PROJECT, DatabaseError

BUSY = 0.1  # share of the processors' time for others: more, and no verdict is given
RESULTS = PROJECT / "bench" / "results.json"
TARGETS = PROJECT / "bench" / "targets.yml"
PAGE = PROJECT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- written by make bench -->\n).*(<!-- until here -->)", re.S)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        part, key: its part's name, and its own.
        what, beside: what was measured, and with what it is compared.
        unit: of both figures, s or MiB.
        ours, theirs: their medians and quartiles; nothing beside it is None.
        ratio: the same of the pairs' ratios.
        pairs: how many there were.
        moved: by what share of itself the other side's figure moved meanwhile.
        repeated: how often it was measured again for that.
        others: the share of the processors' time that other programs had meanwhile;
            None where that can't be told.

    """

    part: str
    key: str
    what: str
    beside: str
    unit: str
    ours: Spread
    theirs: Spread | None
    ratio: Spread | None
    pairs: int
    moved: float
    repeated: int
    others: float | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> Row:
        """A row that was kept as JSON."""
        spreads = {
            name: record[name] and Spread(**record[name])
            for name in ("ours", "theirs", "ratio")
        }
        return cls(**{**record, **spreads})

    @property
    def judged(self) -> float:
        """What is compared with the target."""
        return self.ratio.median if self.ratio else self.ours.median

    @property
    def is_unsteady(self) -> bool:
        return self.moved > UNSTEADY


def rows_of(
    part: str,
    case: Case,
    found: tuple[Figures, Figures],
    repeated: int,
    others: float | None = None,
) -> list[Row]:
    """A case's rows, by its figures."""
    rows = []
    for number, (key, what, unit) in enumerate(case.rows()):
        ours = [step[number] for step in found[0]]
        theirs = [step[number] for step in found[1]]
        # a loop of one step prints no time, so that there may be none
        if not all(ours) or not all(theirs):
            continue
        rows.append(
            Row(
                part,
                key,
                what,
                case.beside,
                unit,
                Spread.of(ours),
                Spread.of(theirs) if theirs else None,
                Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
                if theirs
                else None,
                len(ours),
                round(moved(theirs), 4) if theirs else 0,
                repeated,
                None if others is None else round(others, 4),
            )
        )
    return rows


# --- Verdicts -----------------------------------------------------------------


@cache
def targets() -> dict[str, dict[str, float]]:
    return yaml.safe_load(TARGETS.read_text(encoding="utf-8"))


def verdict(row: Row) -> str:
    """What the row says beside its target: nothing if the machine was busy."""
    target = targets().get(row.key)
    if row.others is not None and row.others > BUSY:
        return f"busy: others had {row.others:.0%}"
    if target is None:
        words = ""
    elif row.judged <= target.get("goal", 0):
        words = "goal met"
    else:
        words = "met" if row.judged <= target["target"] else "missed"
    note = f"unsteady by {row.moved:.0%}" if row.is_unsteady else ""
    return ", ".join(filter(None, (words, note)))


# --- The table ----------------------------------------------------------------


def number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def shown(spread: Spread | None, unit: str = "") -> str:
    """A median with its quartiles, in a unit that suits it."""
    if spread is None:
        return ""
    scale = 1.0
    if unit == "s" and spread.median < 1:
        scale, unit = 1000, "ms"
    low, median, high = (
        number(value * scale) for value in (spread.low, spread.median, spread.high)
    )
    figure = f"{median} {unit}".strip()
    return figure if low == high else f"{figure} ({low} to {high})"


def cells(row: Row) -> list[str]:
    target = targets().get(row.key, {})
    asked = [
        f"{target[name]:g}{'' if row.ratio else ' s'}" if name in target else ""
        for name in ("target", "goal")
    ]
    return [
        row.what,
        row.beside,
        shown(row.ours, row.unit),
        shown(row.theirs, row.unit),
        shown(row.ratio),
        *asked,
        verdict(row),
        f"`{row.part}`",
    ]


HEADER = [
    "what",
    "beside",
    "dbt_nn",
    "beside it",
    "ratio",
    "target",
    "goal",
    "verdict",
    "part",
]


def table(header: Sequence[str], lines: Iterable[Sequence[str]], figures: str) -> str:
    """A table of Markdown; `figures` has a letter a column, r of those to the right."""
    ruled = ["---:" if letter == "r" else "---" for letter in figures]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ruled, *lines))


def summary(machine: Facts, runs: Sequence[Facts]) -> str:
    """The machine, and the runs with the load that they met."""
    return (
        "{processor}, {cores} cores, {memory_gib} GiB, {system}; PostgreSQL "
        "{postgresql} with shared_buffers of {shared_buffers}, pgvector {pgvector}, "
        "torch {torch} with {torch_threads} threads.\n\n".format(**machine)
    ) + table(
        ["run", "began", "commit", "minutes", "load before, after", "stolen"],
        [
            [
                str(number),
                run["started_at"].replace("T", " ").replace("+00:00", " UTC"),
                run["commit"],
                f"{run['minutes']:g}",
                f"{run['load_before']:g}, {run['load_after']:g}",
                f"{run['stolen']:.1%}",
            ]
            for number, run in enumerate(runs, 1)
        ],
        "lllrrr",
    )


# --- What is kept -------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """The newest row of each key, each with the number of its run."""

    machine: Facts
    runs: list[Facts]
    rows: list[tuple[Row, int]]

    @classmethod
    def read(cls, path: Path = RESULTS) -> Results | None:
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [(Row.of(record["row"]), record["run"]) for record in found["rows"]]
        return cls(found["machine"], found["runs"], rows)

    def write(self, path: Path = RESULTS) -> None:
        content = {
            "machine": self.machine,
            "runs": self.runs,
            "rows": [{"run": run, "row": asdict(row)} for row, run in self.rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def markdown(self) -> str:
        """The table, under what it depends on."""
        return (
            f"{summary(self.machine, self.runs)}\n"
            "Medians, with quartiles in brackets.\n\n"
            + table(
                [*HEADER, "run"],
                [[*cells(row), str(run)] for row, run in self.rows],
                "llrrrrrllr",
            )
        )


def merged(
    old: Results | None, new: Results, order: Sequence[str], *, whole: bool
) -> Results:
    """Put new rows in the place of old ones, and keep the others.

    Args:
        old: what is kept.
        new: of one run.
        order: of the parts.
        whole: whether it ran all parts: then it may be of another machine.

    Raises:
        DatabaseError: rows of two machines would stand in one table.

    """
    differ = [
        f"{key} {old.machine.get(key)!r}, here {value!r}"
        for key, value in new.machine.items()
        if old is not None and old.machine.get(key) != value
    ]
    if old is None or (differ and whole):
        return new
    if differ:
        raise DatabaseError(
            f"{PAGE.name} has the figures of another machine ({'; '.join(differ)}): "
            "measure all parts here, or leave out --write"
        )
    measured = {row.part for row, _ in new.rows}
    rows = [
        (row, old.runs[run - 1])
        for row, run in old.rows
        if row.part not in measured and row.part in order
    ]
    rows += [(row, new.runs[run - 1]) for row, run in new.rows]
    rows.sort(key=lambda pair: order.index(pair[0].part))
    runs = [run for run in [*old.runs, *new.runs] if any(r is run for _, r in rows)]
    return Results(
        new.machine,
        runs,
        [
            (row, 1 + next(i for i, r in enumerate(runs) if r is run))
            for row, run in rows
        ],
    )


def page_with(block: str, text: str) -> str:
    """Return the page with its marked block replaced."""
    if not BLOCK.search(text):
        raise DatabaseError(f"{PAGE} has no block that is marked as written by it")
    return BLOCK.sub(lambda found: f"{found[1]}\n{block}\n{found[2]}", text)


def write(results: Results) -> None:
    """Keep the results, and show them in docs/benchmarks.md."""
    page = page_with(results.markdown(), PAGE.read_text(encoding="utf-8"))
    results.write()
    PAGE.write_text(page, encoding="utf-8")
