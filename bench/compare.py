"""Time this project beside itself at another commit, in turn on one server.

    python scripts/bench.py compare HEAD~3                    # and the working tree
    python scripts/bench.py compare HEAD~3 HEAD --part decode,unet

Each side is a git worktree with schemas of its own, and a process of its own that runs
that commit's dbt_nn, dbt models and bench/. A commit that has no bench/side.py gets
this one's bench/. Steps are made in turn, so that what else the machine does meets
both. A row says "faster" or "slower" where a sign test over the pairs rules out chance,
at 5 %, and the medians differ by more than 2 %.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from bench.cases import Pace, Step
from bench.machine import machine, watched
from bench.parts import COMPARED_PARTS, PARTS
from bench.project import SCHEMA, prepared, say
from bench.report import shown, summary, table
from bench.timing import Figures, Spread, in_turn
from dbt_nn.cli import command
from dbt_nn.database import PROJECT, DatabaseError, profiles_path

CHANCE = 0.05  # of a verdict where nothing has changed
MARGIN = 0.02  # two sessions of one commit may differ by as much: their memory differs
OUT = PROJECT / "target" / "compare.json"


# --- The two sides ------------------------------------------------------------


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DatabaseError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def checked_out(revision: str | None, to: Path) -> Iterator[Path]:
    """A commit's files in a worktree; those of the working tree stay where they are."""
    if revision is None:
        yield PROJECT
        return
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    git("worktree", "add", "--quiet", "--detach", str(to), commit)
    try:
        if not (to / "dbt_nn" / "runner.py").exists():
            raise DatabaseError(f"{revision} is from before the package dbt_nn")
        if not (to / "bench" / "side.py").exists():
            shutil.rmtree(to / "bench", ignore_errors=True)
            shutil.copytree(PROJECT / "bench", to / "bench")
        yield to
    finally:
        git("worktree", "remove", "--force", str(to))


class Worker:
    """A process of bench.side, in a commit's folder."""

    def __init__(self, name: str, root: Path, folder: Path, sizes: str):
        """Start it.

        Args:
            name: old or new.
            root: the commit's folder.
            folder: for checkpoints, which both read, and dbt's target folders.
            sizes: a name of SIZES.

        """
        self.name = name
        environment = {
            **os.environ,
            "DBT_PROFILES_DIR": str(profiles_path().parent.resolve()),
        }
        command = [sys.executable, "-m", "bench.side", f"{SCHEMA}_{name}"]
        self.process = subprocess.Popen(
            [*command, str(folder), sizes],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """Ask one thing; its answer."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise DatabaseError(f"{self.name}: its process has ended") from None
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise DatabaseError(f"{self.name}: its process has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise DatabaseError(f"{self.name}: {answer['error']}")
        return answer["answer"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# --- What is said -------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table: new beside old.

    Attributes:
        key, what, unit: as of a row of the other table.
        new, old: medians and quartiles.
        ratio: those of the pairs' ratios, new by old.
        lower: pairs in which new's figure was the lower one.
        pairs: all.

    """

    key: str
    what: str
    unit: str
    new: Spread
    old: Spread
    ratio: Spread
    lower: int
    pairs: int

    def verdict(self) -> str:
        if abs(self.ratio.median - 1) <= MARGIN:
            return "same"
        if chance(self.lower, self.pairs) > CHANCE:
            return "can't tell"
        lower, higher = ("faster", "slower") if self.unit == "s" else ("less", "more")
        return lower if self.ratio.median < 1 else higher

    def cells(self) -> list[str]:
        return [
            self.what,
            shown(self.old, self.unit),
            shown(self.new, self.unit),
            shown(self.ratio),
            f"{self.lower} of {self.pairs}",
            self.verdict(),
        ]


def chance(lower: int, pairs: int) -> float:
    """How likely so few pairs are on one side where a coin decides: a sign test."""
    few = min(lower, pairs - lower)
    tail = sum(math.comb(pairs, k) for k in range(few + 1)) / 2**pairs
    return min(1.0, 2 * tail)


def rows_of(
    words: Iterable[tuple[str, str, str]], new: Figures, old: Figures
) -> list[Row]:
    """A case's rows, by key, words and unit of each and both sides' figures."""
    rows = []
    for place, (key, what, unit) in enumerate(words):
        ours, theirs = ([step[place] for step in side] for side in (new, old))
        if not all(ours) or not all(theirs):
            continue  # a loop of one step, which prints no time
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lower = sum(ratio < 1 for ratio in ratios)
        spreads = (Spread.of(values) for values in (ours, theirs, ratios))
        rows.append(Row(key, what, unit, *spreads, lower, len(ratios)))
    return rows


def step_of(worker: Worker) -> Step:
    return Step(partial(worker.ask, "step"), measures=True)


def compared(
    new: Worker, old: Worker, parts: Sequence[str], pace: Pace
) -> Iterator[Row]:
    """The rows of the cases that both commits have, as they come."""
    cases, others = new.ask("open", parts), old.ask("open", parts)
    for key in cases.keys() ^ others.keys():
        say(f"{key}: one of the commits has no such case")
    for key in (key for key in cases if key in others):
        say(key)
        warm, words = cases[key]
        try:
            for worker in (new, old):
                worker.ask("begin", key)
            figures = in_turn(step_of(new), step_of(old), replace(pace, warm=warm))
            yield from rows_of(words, *figures)
        finally:
            for worker in (new, old):
                worker.ask("end")


@command(__doc__)
@click.argument("old")
@click.argument("new", required=False)
@click.option(
    "--part",
    "parts",
    default=",".join(COMPARED_PARTS),
    help=f"Parts, with commas between them (default: {','.join(COMPARED_PARTS)}).",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=8,
    help="Pairs of steps of a row at least, and thrice that at most (default: 8; the "
    "test needs 6).",
)
@click.option(
    "--seconds",
    type=float,
    default=20,
    help="After which no further pair begins, once there are enough (default: 20).",
)
@click.option("--smoke", is_flag=True, hidden=True)
def compare(
    old: str, new: str | None, parts: str, pairs: int, seconds: float, smoke: bool
) -> int:
    """Carry out the command line."""
    wanted = [part.strip() for part in parts.split(",")]
    for part in wanted:
        if part not in PARTS:
            raise click.UsageError(f"no part {part!r}: there are {', '.join(PARTS)}")
    rows = []
    with contextlib.ExitStack() as stack:
        connection, folder = stack.enter_context(prepared())
        run = stack.enter_context(watched())
        workers = []
        for name, revision in (("new", new), ("old", old)):
            root = stack.enter_context(checked_out(revision, folder / name))
            worker = Worker(name, root, folder, "smoke" if smoke else "compared")
            workers.append(stack.enter_context(worker))
        pace = Pace(least=pairs, most=3 * pairs, seconds=seconds)
        for row in compared(*workers, wanted, pace):
            say(" | ".join(row.cells()))
            rows.append(row)
        facts = machine(connection)
    shown_new = new or f"working tree, {run['commit']}"
    print(f"\n{summary(facts, [run])}\nold: {old}; new: {shown_new}\n")
    header = ["what", "old", "new", "ratio", "pairs with less", "verdict"]
    print(table(header, [row.cells() for row in rows], "lrrrrl"))
    report = {"machine": facts, "run": run, "old": old, "new": shown_new}
    report["rows"] = [asdict(row) for row in rows]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {OUT}")
    return 0
