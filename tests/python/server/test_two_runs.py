"""Two runs at the same time: one waits or is refused, and no rows are mixed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from dbt_nn import database
from runs import Gpt2, Row, load_checkpoint
from small_networks import IMAGE, TEXT, make_project, save_image, save_text

pytestmark = pytest.mark.long

SCHEMA, OTHER = "test_two_runs", "test_two_runs_other"
HELD = f"select * from {SCHEMA}.network_leases where idle_since <> '-infinity'"
PROMPTS: list[Row] = [
    {"prompt_id": 1, "prompt": "It is a truth", "max_new_tokens": 8},
    {"prompt_id": 2, "prompt": "Elinor", "max_new_tokens": 5, "seed": 3},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        TEXT: save_text(tmp_path_factory.mktemp("text"), seed=1),
        "other": save_text(tmp_path_factory.mktemp("other"), seed=2),
        IMAGE: save_image(tmp_path_factory.mktemp("image"), seed=1),
    }


@pytest.fixture(scope="module")
def runs(
    dbt: Dbt,
    connection: Connection,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Gpt2]]:
    """Give a schema's runs of the small text network."""
    project = make_project(
        tmp_path_factory.mktemp("project"), folders[TEXT], folders[IMAGE]
    )
    load_checkpoint(folders[TEXT], TEXT)
    made: list[Gpt2] = []

    def make(schema: str) -> Gpt2:
        target = project / f"target_{schema}"
        runs = Gpt2(
            dbt, connection, schema, target, TEXT, project,
            {f"{TEXT}_options": {"do_sample": True}},
        )  # fmt: skip
        runs.write_prompts(PROMPTS)
        made.append(runs)
        return runs

    yield make
    for each in made:
        each.drop()
        each.execute(f"drop schema if exists {each.schema}_{TEXT} cascade")
    made[0].execute(f"drop schema {TEXT} cascade")


@pytest.fixture(scope="module")
def first(runs: Callable[[str], Gpt2]) -> Gpt2:
    return runs(SCHEMA)


@pytest.fixture(scope="module")
def alone(first: Gpt2) -> dict[int, Row]:
    """The completions of a run that nothing disturbs."""
    first.run()
    return first.completions()


def tokens(completions: dict[int, Row]) -> dict[int, list[int]]:
    return {prompt_id: row["token_ids"] for prompt_id, row in completions.items()}


@contextlib.contextmanager
def held(runs: Gpt2, log: Path) -> Iterator[tuple[Popen[bytes], Connection]]:
    """A run that stops at its second layer until the connection's rollback."""
    table = f"{runs.schema}_{TEXT}.{TEXT}_h_0_ln_1"
    with contextlib.closing(database.connect()) as blocker:
        with blocker.cursor() as cursor:
            cursor.execute(f"lock table {table} in access share mode")
        started = runs.start(log, "--full-refresh")
        try:
            wait_for(
                lambda: runs.query(
                    f"select 1 from {runs.schema}.network_leases "
                    "where model = %s and idle_since is null",
                    [f"{TEXT}_h_0_ln_1"],
                ),
                started,
                log,
            )
            yield started, blocker
        finally:
            started.kill()
            started.wait()


def wait_for(
    condition: Callable[[], Any], run: Popen[bytes], log: Path, timeout: float = 60
) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert run.poll() is None, log.read_text()
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not come: " + log.read_text()[-2000:])


def test_refused_and_waiting(
    first: Gpt2,
    alone: dict[int, Row],
    runs: Callable[[str], Gpt2],
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with held(first, log) as (running, blocker):
        # refused, with who runs and what to do; nothing is touched
        refused = first.run(check=False)
        assert refused.returncode != 0
        for part in (
            f"{TEXT} is being run in schema {SCHEMA} by dbt run (role dbt_nn",
            f"now at {TEXT}_h_0_ln_1, server process ",
            "dbt_nn_wait",
        ):
            assert part in refused.stdout, refused.stdout
        # tests only read, and so are not refused
        tested = first.dbt(
            "test", "--select", f"{TEXT}_prompts", *first.arguments(),
            env=first.environment, check=False,
        )  # fmt: skip
        assert "Finished running" in tested.stdout
        # another schema goes side by side
        other = runs(OTHER)
        other.run()
        assert tokens(other.completions()) == tokens(alone)
        assert running.poll() is None
        # one that waits begins when the first is done
        second_log = tmp_path / "second"
        first.variables["dbt_nn_wait"] = 60
        second = first.start(second_log)
        try:
            wait_for(lambda: "waiting: " in second_log.read_text(), second, second_log)
            blocker.rollback()
            assert running.wait(timeout=60) == 0, log.read_text()
            assert tokens(first.completions()) == tokens(alone)
            assert second.wait(timeout=60) == 0, second_log.read_text()
        finally:
            second.kill()
            del first.variables["dbt_nn_wait"]
    assert tokens(first.completions()) == tokens(alone)
    assert first.query(HELD) == []


def test_killed(first: Gpt2, alone: dict[int, Row], tmp_path: Path) -> None:
    """A run after kill -9 starts at once, although the killed one's query waits."""
    with held(first, tmp_path / "log") as (running, blocker):
        running.kill()
        running.wait()
        started = time.monotonic()
        done = first.start(tmp_path / "second")
        # past the lease: it waits for the lock of this test
        wait_for(
            lambda: first.query(
                f"select 1 from {SCHEMA}.network_leases where model is not null "
                "and since > clock_timestamp() - interval '20 s' "
                "and model = %s and idle_since is null",
                [f"{TEXT}_h_0_ln_1"],
            ),
            done,
            tmp_path / "second",
        )
        assert time.monotonic() - started < 20
        blocker.rollback()
        assert done.wait(timeout=60) == 0, (tmp_path / "second").read_text()
    assert tokens(first.completions()) == tokens(alone)


def test_both_at_the_same_moment(
    first: Gpt2, alone: dict[int, Row], tmp_path: Path
) -> None:
    """However they meet: who runs is right, and who does not says so."""
    logs = [tmp_path / str(n) for n in range(3)]
    started = [first.start(log) for log in logs]
    codes = [run.wait(timeout=120) for run in started]
    assert 0 in codes
    for code, log in zip(codes, logs, strict=True):
        output = log.read_text()
        assert code == 0 or "is being run in schema" in output, output
    assert tokens(first.completions()) == tokens(alone)


def test_threads(first: Gpt2, alone: dict[int, Row]) -> None:
    first.dbt(
        "build", "--threads", "4", "--select", TEXT, *first.arguments(),
        env=first.environment,
    )  # fmt: skip
    assert tokens(first.completions()) == tokens(alone)
    assert first.query(HELD) == []


def test_between_models(first: Gpt2, alone: dict[int, Row]) -> None:
    """A run without a session keeps its lease for a while, then loses it."""
    leases = f"{SCHEMA}.network_leases"
    take = f"select * from {SCHEMA}.take_leases(array['a', 'b'], %s, 'dbt run')"
    hold = f"select {SCHEMA}.hold_lease('a', %s, 'm', '{TEXT}', null, null, null)"
    with contextlib.closing(database.connect(autocommit=True)) as session:
        cursor = session.cursor()
        assert first.query(take, ["one"]) == []
        [found] = first.query(take, ["two"])
        assert (found["network"], found["alive"]) == ("a", False)
        first.execute(f"update {leases} set idle_since = now() - interval '31 s'")
        # it comes back before anyone else
        cursor.execute(hold, ["one"])
        [found] = first.query(take, ["two"])
        assert (found["network"], found["alive"]) == ("a", True)
        # that of b was lost meanwhile, but a run takes all or nothing
        [row] = first.query(f"select * from {leases} where network = 'b'")
        assert row["invocation_id"] == "one"
    # the session is gone in the middle of a model: killed
    wait_until = time.monotonic() + 10
    while first.query(take, ["two"]):
        assert time.monotonic() < wait_until
    with (
        contextlib.closing(database.connect(autocommit=True)) as session,
        pytest.raises(psycopg2.Error, match="another run of a took over"),
    ):
        session.cursor().execute(hold, ["one"])
    first.execute(f"delete from {leases}")


def test_checkpoint_of_another_run(
    first: Gpt2, alone: dict[int, Row], folders: dict[str, Path], tmp_path: Path
) -> None:
    """One that is loaded between two models stops the run."""
    leases = f"{SCHEMA}.network_leases"
    hold = f"select {SCHEMA}.hold_lease('a', 'one', 'm', '{TEXT}', null, null, null)"
    take = f"select * from {SCHEMA}.take_leases(array['a'], 'one', 'dbt run')"
    # a session that was closed holds its lock until the server has noticed
    wait_until = time.monotonic() + 10
    while first.query(take):
        assert time.monotonic() < wait_until
    with contextlib.closing(database.connect(autocommit=True)) as session:
        session.cursor().execute(hold)
    try:
        load_checkpoint(folders["other"], TEXT)
        with (
            contextlib.closing(database.connect(autocommit=True)) as session,
            pytest.raises(psycopg2.Error, match=f"checkpoint {TEXT} was loaded anew"),
        ):
            session.cursor().execute(hold)
    finally:
        load_checkpoint(folders[TEXT], TEXT)
        first.execute(f"delete from {leases}")
