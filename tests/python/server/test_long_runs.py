"""Long runs in one server: its memory stays flat, its disk bounded, its pace the same.

Two networks run in turn, and later rounds ask for the same anew with other seeds,
so that what a round leaves behind is all that grows.
"""

from __future__ import annotations

import functools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection

from conftest import Dbt
from dbt_nn import database, embedded
from runs import TWIN, UNET_TWIN, Ddpm, Gpt2, load_checkpoint
from small_networks import IMAGE, TEXT, make_project, save_image, save_text

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc"),
]

SCHEMA = "test_long_runs"
SEQUENCES, NEW_TOKENS = 16, 125
IMAGES, STEPS = 3, 50
ROUNDS = 3
# What a round may differ from one before it by: a session's caches, rows that
# autovacuum has not come to yet, and other tests that begin meanwhile.
MEMORY_GROWTH, CACHES = 1.15, 8 << 20
DISK_GROWTH = 1.3
SLOWDOWN = 3
# Steps after which every function has its plans.
WARM_UP = 8


@dataclass
class Round:
    """What a run needed, step by step, and what the database has after it."""

    seconds: list[float] = field(default_factory=list)
    session: list[int] = field(default_factory=list)  # bytes
    dbt: list[int] = field(default_factory=list)
    database: int = 0
    catalogs: int = 0
    log: int = 0  # of transactions

    def __str__(self) -> str:
        """One line of figures."""
        first, last = (round(1000 * seconds) for seconds in ends(self.seconds))
        session, client = (
            "{} then {} MiB".format(*(round(n) >> 20 for n in ends(each)))
            for each in (self.session, self.dbt)
        )
        return (
            f"{len(self.seconds)} steps, {first} then {last} ms; session {session}, "
            f"dbt {client}; database {self.database >> 20} MiB, of which catalogs "
            f"{self.catalogs >> 20} MiB, WAL {self.log >> 20} MiB"
        )


def ends(values: list[float]) -> tuple[float, float]:
    """Medians of a quarter: the first after the warm-up, and the last."""
    quarter = len(values) // 4
    return (
        statistics.median(values[WARM_UP : WARM_UP + quarter]),
        statistics.median(values[-quarter:]),
    )


def memory(pid: int) -> int:
    """Bytes that are the process's own, so without the server's shared buffers."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # it has ended
        return 0
    return 1024 * sum(map(int, re.findall(r"^RssAnon:\s+(\d+)", status, re.M)))


@functools.cache
def postmaster() -> int:
    data = embedded.find_place().data
    return int((data / "postmaster.pid").read_text().split()[0])


def largest_process() -> int:
    """Memory of the server's largest process, the session that runs the network."""
    parent = postmaster()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return max(memory(int(pid)) for pid in [parent, *children])


def run(runs: Gpt2 | Ddpm, arguments: list[str]) -> Round:
    """Run dbt and measure at each step, of which its debug log has a line."""
    found = Round()
    process = subprocess.Popen(
        [sys.executable, "-m", "dbt.cli.main", "--log-level", "debug", *arguments],
        cwd=database.PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **runs.environment, "PYTHONUNBUFFERED": "1"},
    )
    output = []
    before = None
    with process:
        for line in process.stdout:
            output.append(line)
            if '"steps_left": ' not in line:
                continue
            now = time.monotonic()
            if before is not None:
                found.seconds.append(now - before)
            before = now
            found.session.append(largest_process())
            found.dbt.append(memory(process.pid))
    assert process.returncode == 0, "".join(output[-40:])
    [sizes] = runs.query(
        """
        select
            pg_database_size(current_database()) as database,
            (
                select sum(pg_total_relation_size(oid)) from pg_class
                where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r'
            )::bigint as catalogs,
            (select sum(size) from pg_ls_waldir())::bigint as log
        """
    )
    found.database, found.catalogs = sizes["database"], sizes["catalogs"]
    found.log = sizes["log"]
    return found


@pytest.fixture(
    scope="module",
    params=[
        "small",
        pytest.param(
            "twins",
            marks=pytest.mark.skipif(
                os.environ.get("LONG_RUNS") != "1", reason="LONG_RUNS=1 runs it"
            ),
        ),
    ],
)
def networks(
    request: pytest.FixtureRequest,
    dbt: Dbt,
    connection: Connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Gpt2, Ddpm]]:
    """A text and an image network whose checkpoints are loaded."""
    target = tmp_path_factory.mktemp("target")
    cursor = connection.cursor()
    if request.param == "small":
        # as often for a run of seconds as, by default, for one of minutes
        cursor.execute("alter system set autovacuum_naptime = '1s'")
        cursor.execute("select pg_reload_conf()")
        text = save_text(tmp_path_factory.mktemp("text"), seed=1)
        image = save_image(tmp_path_factory.mktemp("image"), seed=1)
        project = make_project(tmp_path_factory.mktemp("project"), text, image)
        load_checkpoint(text, TEXT)
        load_checkpoint(image, IMAGE)
        made = (
            Gpt2(dbt, connection, f"{SCHEMA}_text", target, TEXT, project),
            Ddpm(dbt, connection, f"{SCHEMA}_image", target, IMAGE, project),
        )
    else:
        load_checkpoint(TWIN, "gpt2_twin")
        load_checkpoint(UNET_TWIN, "ddpm_twin")
        made = (
            Gpt2(dbt, connection, f"{SCHEMA}_text", target),
            Ddpm(dbt, connection, f"{SCHEMA}_image", target),
        )
    yield made
    cursor.execute("alter system reset autovacuum_naptime")
    cursor.execute("select pg_reload_conf()")
    for each in made:
        each.drop()


def complete(runs: Gpt2, number: int) -> Round:
    runs.write_prompts(
        {
            "prompt_id": n,
            "prompt_token_ids": [100 + n],
            "max_new_tokens": NEW_TOKENS,
            "do_sample": True,
            "seed": number,
        }
        for n in range(SEQUENCES)
    )
    found = run(runs, ["run", "--select", runs.network, *runs.arguments()])
    [made] = runs.query(
        f"select count(*) as n from {runs.schema}.{runs.network}_completion_tokens"
    )
    assert made["n"] > 0.5 * SEQUENCES * NEW_TOKENS  # some may end early
    return found


def draw(runs: Ddpm, number: int) -> Round:
    runs.write_requests(
        {
            "image_id": n,
            "scheduler": "ddpm",
            "num_inference_steps": STEPS,
            "seed": IMAGES * number + n,
        }
        for n in range(IMAGES)
    )
    return run(runs, ["run", "--select", runs.network, *runs.arguments()])


def test_long_runs(networks: tuple[Gpt2, Ddpm]) -> None:
    """2,000 tokens of 16 sequences and 3 images of 50 steps, again and again."""
    jobs: list[tuple[Callable[..., Round], Gpt2 | Ddpm]] = [
        (complete, networks[0]),
        (draw, networks[1]),
    ]
    rounds: list[list[Round]] = []
    for number in range(ROUNDS):
        rounds.append([job(runs, number) for job, runs in jobs])
        for (_, runs), found in zip(jobs, rounds[-1], strict=True):
            print(f"round {number + 1}, {runs.network}: {found}", flush=True)
    for first, *_, second, last in zip(*rounds, strict=True):
        for each in (first, second, last):
            for values in (each.session, each.dbt):
                start, end = ends(values)
                assert end < MEMORY_GROWTH * start + CACHES
        limit = MEMORY_GROWTH * ends(first.session)[1] + CACHES
        assert ends(last.session)[1] < limit
        assert last.database < DISK_GROWTH * second.database
        assert last.catalogs < DISK_GROWTH * second.catalogs
        start, end = ends(last.seconds)
        assert end < SLOWDOWN * start
        assert end < SLOWDOWN * ends(first.seconds)[1]
