"""Time the networks here beside the libraries that one would use, in one run.

    make bench                               # into docs/benchmarks.md
    python scripts/bench.py decode unet      # some of it; --write puts it there, too
    python scripts/bench.py compare HEAD~3   # this working tree beside a commit

Figures are medians of steps that are made in turn, with quartiles.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click
import psycopg2

from bench.cases import Case, Pace, Unavailable
from bench.compare import compare
from bench.machine import Others, machine, watched
from bench.parts import BY_NAME, PARTS, USUAL, listed
from bench.project import SCHEMA, Project, prepared, say
from bench.report import HEADER, Results, Row, cells, merged, rows_of, summary, table
from bench.report import write as write_page
from bench.sizes import SIZES
from bench.timing import UNSTEADY, in_turn
from dbt_nn.cli import Group
from dbt_nn.database import PROJECT, DatabaseError

OUT = PROJECT / "target" / "bench.json"


def measure(part: str, case: Case, folder: Path, sizes: str) -> list[Row]:
    """A case's rows, of the time at which the other side was steadiest."""
    best: list[Row] = []
    for repeated in range(case.repeats + 1):
        with Project(SCHEMA, folder, SIZES[sizes]) as project:
            ours = case.ours(project)
            theirs = case.theirs(project) if case.theirs else None
            with Others(project.connection) as others:
                found = in_turn(ours, theirs, case.pace)
        rows = rows_of(part, case, found, repeated, others.share)
        if not best or max(row.moved for row in rows) < max(row.moved for row in best):
            best = rows
        if not any(row.is_unsteady for row in rows):
            break
        if repeated < case.repeats:
            say(f"{case.key}: what is beside it moved by over {UNSTEADY:.0%}: again")
    return best


def quick(case: Case) -> Case:
    """Two pairs at most, never again."""
    pace = Pace(min(case.pace.warm, 1), least=1, most=2, seconds=1)
    return dataclasses.replace(case, pace=pace, repeats=0)


class Benchmarks(Group):
    """Commands, of which `measure` needs no name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and args[0] in (*self.commands, "-h", "--help")
        return super().parse_args(ctx, args if named else ["measure", *args])


@click.group(
    cls=Benchmarks,
    help=f"""{__doc__}
measure, which is what a call without a command does, makes checkpoints of the
published shapes with seeded random weights (MiniLM's are the published ones), loads
them, and makes a step of ours and one of the library's in turn, float32, all cores. It
prints the machine with its load before and after, and medians with quartiles. A row
is measured again where the library's figure moved by more than a quarter meanwhile.
Needs the packages of requirements-test.lock. The parts, all but {" and ".join(BY_NAME)}
where none is named:

{listed()}
""",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def main() -> None:
    """Hand over to a command."""


@main.command("measure", help="time parts, beside libraries", short_help="time parts")
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS]), metavar="[PART]...")
@click.option(
    "--write",
    is_flag=True,
    help="Put the rows into docs/benchmarks.md and bench/results.json; rows of other "
    "parts stay.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    help="Where the figures go as JSON (default: target/bench.json).",
)
@click.option(
    "--quick", "is_quick", is_flag=True, help="Two steps a row: to see that it runs."
)
@click.option("--smoke", is_flag=True, hidden=True)
def measure_parts(
    parts: tuple[str, ...], write: bool, out: Path, is_quick: bool, smoke: bool
) -> int:
    """Carry out the command line."""
    if write and (is_quick or smoke):
        raise click.UsageError("figures of --quick are not for docs/benchmarks.md")
    sizes = "smoke" if smoke else "published"
    wanted = [part for part in PARTS if part in (parts or USUAL)]
    rows: list[Row] = []
    failures = 0
    with prepared() as (connection, folder), watched() as run:
        facts = machine(connection)
        for part in wanted:
            for case in PARTS[part](SIZES[sizes]):
                case = quick(case) if is_quick or smoke else case
                say(f"{part}: {case.what}")
                started = time.monotonic()
                try:
                    found = measure(part, case, folder, sizes)
                except Unavailable as reason:
                    say(f"{part}: no figures: {reason}")
                    continue
                except (DatabaseError, psycopg2.Error) as error:
                    failures += 1
                    say(f"error: {part}: {error}")
                    continue
                for row in found:
                    say(" | ".join(cells(row)))
                say(f"{case.key} took {time.monotonic() - started:.0f} s")
                rows += found
    results = Results(facts, [run], [(row, 1) for row in rows])
    print(f"\n{summary(facts, [run])}")
    print(table(HEADER, map(cells, rows), "llrrrrrll"))
    results.write(out)
    print(f"written to {out}")
    if write:
        whole = not failures and {*USUAL} <= {*wanted}
        write_page(merged(Results.read(), results, [*PARTS], whole=whole))
        print("and into docs/benchmarks.md")
    return 1 if failures else 0


main.add_command(compare)
