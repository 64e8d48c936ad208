"""scripts/bench.py: what it says of figures, and on tiny shapes that all parts run.

No test looks at how long something took.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psycopg2
import pytest

from bench import bench
from bench.cases import Case, Pace, Quantity, Step
from bench.compare import Row as ComparedRow
from bench.compare import chance
from bench.compare import rows_of as compared_rows_of
from bench.machine import Others
from bench.parts import PARTS
from bench.report import (
    PAGE,
    Results,
    Row,
    cells,
    merged,
    page_with,
    rows_of,
    shown,
    targets,
    verdict,
)
from bench.sizes import Sizes
from bench.timing import Spread, in_turn, moved
from conftest import run_script
from dbt_nn.database import PROJECT, DatabaseError

MACHINE = {
    "processor": "P",
    "cores": 2,
    "memory_gib": 4,
    "system": "S",
    "postgresql": "18",
    "shared_buffers": "1GB",
    "pgvector": "0.8",
    "torch": "2",
    "torch_threads": 2,
}
RUN = {
    "commit": "abc",
    "started_at": "2026-11-29T19:00+00:00",
    "load_before": 0.1,
    "load_after": 2.0,
    "stolen": 0.01,
    "minutes": 3.0,
}


def steps(*values: float) -> Step:
    """Steps whose figures are these, one after another."""
    left = iter(values)
    return Step(lambda: [next(left)], measures=True)


def row(key: str, ratio: float, part: str = "decode") -> Row:
    return Row(
        part, key, f"what {key}", "torch", "s",
        Spread(0.1, ratio, 0.3), Spread(0.1, 1, 0.3), Spread(ratio, ratio, ratio),
        5, 0.0, 0,
    )  # fmt: skip


# --- Timing -------------------------------------------------------------------


def test_sides_begin_in_turn() -> None:
    """Warm pairs do not count; what is before a step is not part of its figure."""
    calls: list[str] = []

    def side(name: str) -> Step:
        return Step(
            lambda: calls.append(name) or [len(calls)],
            lambda: calls.append(f"before {name}"),
            measures=True,
        )

    pace = Pace(warm=1, least=3, most=3)
    ours, theirs = in_turn(side("a"), side("b"), pace)

    assert [name for name in calls if len(name) == 1] == [*"ab", *"ab", *"ba", *"ab"]
    assert calls[:2] == ["before a", "a"]
    assert (ours, theirs) == ([[6], [12], [14]], [[8], [10], [16]])


@pytest.mark.parametrize(("seconds", "pairs"), [(0, 2), (1000, 4)])
def test_pairs_between_least_and_most(seconds: float, pairs: int) -> None:
    pace = Pace(warm=0, least=2, most=4, seconds=seconds)
    ours, theirs = in_turn(steps(*range(9)), None, pace)
    assert (len(ours), theirs) == (pairs, [])


def test_seconds_by_units() -> None:
    """A step that measures nothing itself is timed, and divided."""
    [[one], _], _ = in_turn(Step(lambda: 7, units=1e9), None, Pace(0, 2, 2))
    assert 0 < one < 1e-9


def test_quartiles() -> None:
    assert Spread.of([4.0]) == Spread(4, 4, 4)
    assert Spread.of([1.0, 2, 3, 4, 5]) == Spread(2, 3, 4)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([2.0], 0),
        ([2.0, 3.0], 0.5),
        ([10.0, 10, 10, 13, 13, 13], 0.3),  # slower at the end
        ([10.0, 10, 13, 13, 10, 10], 0.3),  # or in the middle
        ([10.0, 13, 10, 10, 13, 10, 10, 13, 10], 0),  # now and then
    ],
)
def test_moved(values: list[float], share: float) -> None:
    assert moved(values) == pytest.approx(share)


def test_a_row_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the other side moved; the steadiest time counts."""
    project = SimpleNamespace(connection=None)
    monkeypatch.setattr(bench, "Project", lambda *_: nullcontext(project))
    others = SimpleNamespace(share=0.02)
    monkeypatch.setattr(bench, "Others", lambda _: nullcontext(others))
    other = iter([(1, 2), (1, 1.3), (1, 1.1)])
    case = Case(
        "a", "a", "torch",
        lambda _: steps(1, 1), lambda _: steps(*next(other)),
        pace=Pace(0, 2, 2), repeats=2,
    )  # fmt: skip

    [steady] = bench.measure("decode", case, Path(), "smoke")
    assert (steady.repeated, steady.is_unsteady) == (2, False)

    other = iter([(1, 1.3), (1, 2), (1, 3)])
    [unsteady] = bench.measure("decode", case, Path(), "smoke")
    assert (unsteady.repeated, unsteady.moved) == (0, 0.3)
    assert "unsteady by 30%" in verdict(unsteady)

    other = iter([(1, 1.2)])
    [at_once] = bench.measure("decode", case, Path(), "smoke")
    assert at_once.repeated == 0


# --- What is said -------------------------------------------------------------


def test_targets_are_of_rows() -> None:
    """Each target has its row, and each row but of other sizes its target."""
    keys = {
        key
        for part in PARTS.values()
        for case in part(Sizes())
        for key, _, _ in case.rows()
    }
    assert keys == targets().keys()


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(1.5, "goal met"), (2.5, "met"), (2.51, "missed")],
)
def test_verdicts(ratio: float, words: str) -> None:
    assert targets()["decode.16"] == {"target": 2.5, "goal": 1.5}
    assert verdict(row("decode.16", ratio)) == words
    assert verdict(row("another", ratio)) == ""


def test_no_verdict_of_a_busy_machine() -> None:
    """Torch's threads wait for each other, and any ratio looks good."""
    assert verdict(replace(row("decode.16", 1.5), others=0.1)) == "goal met"
    assert verdict(replace(row("decode.16", 1.5), others=0.6)) == "busy: others had 60%"


def test_what_others_take(connection: psycopg2.extensions.connection) -> None:
    """The server's work and that of this process's children are ours."""
    burn = "import time\nwhile time.process_time() < 1: pass"
    with Others(connection) as ours:
        subprocess.run([sys.executable, "-c", burn], check=True)
        connection.cursor().execute("select count(*) from generate_series(1, 9999999)")
    if ours.share is None:
        pytest.skip("it can't be told here")
    with Others(connection) as others:
        others.ours = others.ours[1:]  # as if this process were another's
        subprocess.run([sys.executable, "-c", burn], check=True)
        mine = others.seconds()[1] - others.before[1]
    assert mine >= 0.9
    assert 0 <= ours.share <= 1


def test_verdict_in_seconds() -> None:
    """Where nothing is beside it."""
    alone = replace(row("demo", 0), ours=Spread(70, 74, 76), theirs=None, ratio=None)
    assert verdict(alone) == "met"
    assert cells(alone)[2:7] == ["74.0 s (70.0 to 76.0)", "", "", "75 s", "60 s"]


def test_figures() -> None:
    assert shown(Spread(0.0123, 0.0456, 0.5), "s") == "45.6 ms (12.3 to 500)"
    assert shown(Spread(0.9, 1234.5, 2000), "s") == "1,234 s (0.90 to 2,000)"
    assert shown(Spread(2, 2, 2), "MiB") == "2.00 MiB"


def test_rows_of_quantities() -> None:
    """One for each; a loop that printed nothing has none."""
    quantities = (Quantity("a", "first"), Quantity("b", "second", "MiB"))
    case = Case("k", "what", "x", steps, steps, quantities)
    found = ([[2.0, 8.0], [2.0, 8.0]], [[1.0, 4.0], [2.0, 4.0]])
    first, second = rows_of("decode", case, found, 0)
    assert (first.key, first.what, first.unit) == ("k.a", "what: first", "s")
    assert (first.ratio.median, first.moved) == (1.5, 1)
    assert (second.key, second.ratio.median, second.unit) == ("k.b", 2, "MiB")
    none = ([[2.0, 0.0]], [[1.0, 4.0]])
    assert [row.key for row in rows_of("decode", case, none, 0)] == ["k.a"]


# --- What is kept -------------------------------------------------------------


def test_rows_of_other_parts_stay(tmp_path: Path) -> None:
    """Also through the file; a run without a row is not shown any more."""
    order = ["decode", "batch", "unet"]
    first, second, third = ({**RUN, "commit": name} for name in "abc")
    old = Results(
        MACHINE,
        [first, second],
        [(row("decode.16", 2), 1), (row("unet.1", 9, "unet"), 2),
         (row("gone", 9, "gone"), 2)],
    )  # fmt: skip
    old.write(tmp_path / "results.json")
    new = Results(
        MACHINE, [third],
        [(row("batch", 3, "batch"), 1), (row("decode.1000", 4), 1)],
    )  # fmt: skip

    both = merged(Results.read(tmp_path / "results.json"), new, order, whole=False)

    assert [(row.key, both.runs[run - 1]["commit"]) for row, run in both.rows] == [
        ("decode.1000", "c"),
        ("batch", "c"),
        ("unet.1", "b"),
    ]
    assert both.runs == [second, third]
    assert merged(None, new, order, whole=False) == new
    table = both.markdown()
    assert "| what unet.1 | torch | 9.00 s (0.10 to 0.30) |" in table
    assert "| met | `unet` | 1 |" in table
    assert "P, 2 cores, 4 GiB, S; PostgreSQL 18" in table
    assert "| 2 | 2026-11-29 19:00 UTC | c | 3 | 0.1, 2 | 1.0% |" in table


def test_rows_of_two_machines() -> None:
    """They are not put into one table, but a whole run replaces it."""
    old = Results(MACHINE, [RUN], [(row("decode.16", 2), 1)])
    here = {**MACHINE, "cores": 8}
    new = Results(here, [RUN], [(row("unet.1", 2, "unet"), 1)])
    with pytest.raises(DatabaseError, match=r"another machine.*cores 2, here 8"):
        merged(old, new, [*PARTS], whole=False)
    assert merged(old, new, [*PARTS], whole=True) == new


def test_the_page_shows_the_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    results = Results.read()
    assert results is not None
    assert page_with(results.markdown(), text) == text
    assert "| new |" in page_with("| new |", text)
    with pytest.raises(DatabaseError, match="no block"):
        page_with("", "a page")


# --- Two commits --------------------------------------------------------------


def test_chance() -> None:
    """A sign test: of six pairs on one side it is 2 in 64."""
    assert chance(0, 6) == chance(6, 6) == pytest.approx(1 / 32)
    assert chance(0, 5) == pytest.approx(1 / 16)
    assert chance(3, 6) == 1


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([0.9] * 6, "faster"),
        ([1.1] * 6, "slower"),
        ([0.99] * 6, "same"),
        ([0.9] * 5, "can't tell"),  # too few
        ([0.9, 0.9, 0.9, 0.9, 1.1, 1.1], "can't tell"),
    ],
)
def test_which_commit_is_faster(new: list[float], verdict: str) -> None:
    words = [("k", "what", "s"), ("m", "memory", "MiB")]
    found, memory = compared_rows_of(
        words, [[value, 3] for value in new], [[1, 6]] * len(new)
    )
    assert found.verdict() == verdict
    assert isinstance(memory, ComparedRow)
    assert memory.ratio.median == 0.5
    assert memory.verdict() in ("less", "can't tell")


# --- All of it, on tiny shapes ------------------------------------------------


@pytest.mark.long
def test_every_part_runs(
    connection: psycopg2.extensions.connection, tmp_path: Path
) -> None:
    """And leaves nothing behind; the page stays as it is."""
    page, out = PAGE.read_text(encoding="utf-8"), tmp_path / "bench.json"

    parts = [part for part in PARTS if part != "demo"]  # test_documents.py makes it
    done = run_script("bench.py", *parts, "--smoke", "--out", str(out), timeout=2400)

    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    rows = [Row.of(record["row"]) for record in report["rows"]]
    assert {row.part for row in rows} == {*parts}
    for found in rows:
        assert found.ours.median > 0, found
        assert found.theirs is not None and found.theirs.median > 0, found
        assert f"| {found.what} | {found.beside} |" in done.stdout
    assert f"torch {report['machine']['torch']}" in done.stdout
    assert "load before, after" in done.stdout
    assert PAGE.read_text(encoding="utf-8") == page
    check_nothing_is_left(connection)


@pytest.mark.long
def test_two_commits_are_compared(connection: psycopg2.extensions.connection) -> None:
    options = ["--smoke", "--part", "decode,encoder", "--pairs", "2", "--seconds", "0"]
    done = run_script("bench.py", "compare", "HEAD", *options)
    assert done.returncode == 0, done.stderr
    for words in ("a token, context 4", "embedding"):
        assert f"\n| {words}" in done.stdout
    assert "of 2 |" in done.stdout
    check_nothing_is_left(connection)


def check_nothing_is_left(connection: psycopg2.extensions.connection) -> None:
    cursor = connection.cursor()
    cursor.execute("select nspname from pg_namespace where nspname like '%bench%'")
    assert cursor.fetchall() == []
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=PROJECT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "dbt_nn-bench-" not in worktrees.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing' is not one of"),
        (["decode", "--quick", "--write"], "are not for docs/benchmarks.md"),
        (["compare", "HEAD", "--part", "decode,a"], "no part 'a'"),
        (["compare"], "Missing argument 'OLD'"),
    ],
    ids=" ".join,
)
def test_mistakes_of_usage(arguments: list[str], message: str) -> None:
    done = run_script("bench.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_no_such_commit(server: SimpleNamespace) -> None:
    done = run_script("bench.py", "compare", "no-such-commit", "--part", "decode")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: git rev-parse" in done.stderr
