"""Kills at random points: a plain rerun makes what an undisturbed run makes.

The points and the kinds of fault follow from SEED; each is printed, so that a
failure names all that came before. A crash of the server may lose the commits of
its last moments, but for what is said to be finished.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from safetensors.torch import load_file, save_file

from conftest import Dbt, run_script
from dbt_nn import database, embedded
from runs import TWIN, Ddpm, Gpt2, Row, load_checkpoint
from small_networks import IMAGE, TEXT, make_project, save_image, save_text

pytestmark = pytest.mark.long

SEED = 20261125
SCHEMA, UNDISTURBED = "test_faults", "test_faults_undisturbed"
LOADED, WHOLE = "test_faults_loaded", "test_faults_whole"

# How many faults: in loading, and at each kind of point (see Disturbed.reached).
LOADS = 20
TEXT_POINTS = {"model": 7, "token": 7, "finished": 7}
REFRESHES = 5
IMAGE_POINTS = {"model": 4, "step": 6}

# Runs in succession that may end before the fault, or in spite of it.
MISSES = 12

# Bytes that a file may have while the disk is "full".
FILE_LIMITS = (0, 8192, 65536)

# What an attempt has of its own.
IGNORED = {"finished_at", "sequence_id", "completion_id"}

# Of logarithms of probabilities and activations; texts and tokens are the same.
TOLERANCE = 1e-6


# --- Faults -------------------------------------------------------------------


@functools.cache
def data() -> Path:
    return embedded.find_place().data


def postmaster() -> int:
    return int((data() / "postmaster.pid").read_text().split()[0])


def children(parent: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [int(pid) for pid, ppid in pairs if int(ppid) == parent]


def limit_files(pids: list[int], limit: int | str) -> bool:
    """A write past the limit fails as one on a full disk does.

    False where this is not possible. A process's own user may limit it, which
    without further rights root may not.
    """
    if not shutil.which("prlimit"):
        return False
    owner = data().stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    # all at once, since a load is soon over; some may have ended meanwhile
    each = 'for pid; do prlimit --pid "$pid" --fsize="$0" && one=1; done; test "$one"'
    done = subprocess.run(
        ["sh", "-c", each, f"{limit}:unlimited", *map(str, pids)],
        capture_output=True,
        **(as_owner if os.geteuid() == 0 else {}),
    )
    return done.returncode == 0


@dataclass
class Faults:
    """Disturbs a process that uses the server, and mends the server after."""

    seed: int
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    missed: int = 0  # faults in succession that stopped nothing
    crashed: bool = False

    def __post_init__(self) -> None:
        """Seed, and connect under a name that no fault looks for."""
        self.random = random.Random(self.seed)
        self.kinds = ["process", "session", "shutdown", "crash"]
        if limit_files([postmaster()], "unlimited"):
            self.kinds.append("disk")
        else:
            print("no fault of a full disk: the server's files can't be limited")
        self.queue: list[str] = []
        self.fixtures: list[int] = []
        self.connect()
        self.fixtures = self.sessions("dbt_nn")

    def connect(self) -> None:
        self.connection = database.connect(
            autocommit=True, application_name="test_faults"
        )
        with self.connection.cursor() as cursor:
            cursor.execute("set lock_timeout = '50ms'")

    def query(self, statement: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Rows; none where a relation is not there yet, or is being replaced."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall()
        except (
            psycopg2.errors.UndefinedTable,
            psycopg2.errors.InvalidSchemaName,
            psycopg2.errors.LockNotAvailable,
        ):
            return []

    def sessions(self, application: str) -> list[int]:
        rows = self.query(
            "select pid from pg_stat_activity "
            "where application_name = %s and pid != all(%s)",
            [application, self.fixtures],
        )
        return [pid for (pid,) in rows]

    def next_kind(self) -> str:
        """All kinds in turn, shuffled."""
        if not self.queue:
            self.queue = self.random.sample(self.kinds, len(self.kinds))
        return self.queue[-1]

    def disturb(
        self,
        start: Callable[[Path], Popen[bytes]],
        application: str,
        reached: Callable[[], bool],
        delay: float,
        place: str,
        before: Callable[[], None] = lambda: None,
    ) -> bool:
        """Whether a fault stopped the process, `delay` seconds after a point.

        `before` is called just before it.
        """
        kind = self.next_kind()
        log = self.folder / f"log_{sum(self.counts.values())}"
        self.crashed = False
        run = start(log)
        try:
            deadline = time.monotonic() + 120
            while run.poll() is None and not reached():
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.003)
            time.sleep(delay)
            if run.poll() is None:
                before()
                getattr(self, f"_{kind}")(run, application)
                run.wait(timeout=120)
        finally:
            run.kill()
            run.wait()
            self.mend()
        output = log.read_text(encoding="utf-8", errors="replace")
        print(
            f"fault {sum(self.counts.values()) + 1}, seed {self.seed}: {kind} at "
            f"{place} + {delay:.3f} s, crashed {self.crashed}: {run.returncode}",
            flush=True,
        )
        if run.returncode == 0:
            self.missed += 1
            assert self.missed < MISSES, f"{kind} stopped nothing, {MISSES} times"
            return False
        self.missed = 0
        assert "Traceback" not in output, output[-3000:]
        if kind != "process":
            # not a failure of its own
            said = ("connection", "terminating", "too large", "server", "PANIC")
            assert any(word in output for word in said), output[-3000:]
        self.queue.pop()
        self.counts[kind] += 1
        self.places[place.split()[0]] += 1
        return True

    def _process(self, run: Popen[bytes], application: str) -> None:
        run.kill()

    def _session(self, run: Popen[bytes], application: str) -> None:
        while run.poll() is None:
            ended = self.query(
                "select pg_terminate_backend(pid) from unnest(%s::int[]) as pid",
                [self.sessions(application)],
            )
            if ended:
                return

    def _shutdown(self, run: Popen[bytes], application: str) -> None:
        """In the server's immediate mode: without a checkpoint."""
        self.crashed = True
        os.kill(postmaster(), signal.SIGQUIT)

    def _crash(self, run: Popen[bytes], application: str) -> None:
        self.crashed = True
        parent = postmaster()
        for pid in [parent, *children(parent)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _disk(self, run: Popen[bytes], application: str) -> None:
        """Full until the process gives up, or ends since it wrote too little.

        For its sessions, which then fail; for the rest of the server, which can't
        go on without its log of transactions; or for both.
        """
        limit = self.random.choice(FILE_LIMITS)
        whom = self.random.choice(["sessions", "others", "all"])
        parent = postmaster()
        found = set(self.sessions(application))
        if whom != "sessions":
            everyone = set(children(parent))
            found = everyone if whom == "all" else everyone - found
        limit_files([parent, *found], limit)

    def mend(self) -> None:
        """Lift the limits; start the server if it does not run."""
        with contextlib.suppress(OSError):
            parent = postmaster()
            for _ in range(2):  # children of before the parent's limit was lifted
                if "disk" in self.kinds:
                    limit_files([parent, *children(parent)], "unlimited")
        try:
            if not self.crashed:
                self.query("select 1")
                return
        except psycopg2.Error:
            self.crashed = True  # no room for the log
        self.connection.close()
        done = run_script("server.py", "start")
        assert done.returncode == 0, done.stdout + done.stderr
        self.connect()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        TEXT: save_text(tmp_path_factory.mktemp("text"), seed=1),
        IMAGE: save_image(tmp_path_factory.mktemp("image"), seed=1),
    }


@pytest.fixture(scope="module")
def project(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(
        tmp_path_factory.mktemp("project"), folders[TEXT], folders[IMAGE]
    )


@pytest.fixture
def faults(
    request: pytest.FixtureRequest, connection: Connection, tmp_path: Path
) -> Iterator[Faults]:
    """Each test has its own random numbers, whichever tests run."""
    made = Faults(SEED, tmp_path)
    yield made
    print("faults:", dict(made.counts), dict(made.places))
    made.connection.close()


# --- Loading a checkpoint -----------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """Two that are large enough for a load to take a while."""
    other = tmp_path / "other"
    shutil.copytree(TWIN, other)
    weights = other / "model.safetensors"
    save_file(
        {name: -tensor for name, tensor in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )
    return [TWIN, other]


def contents(
    faults: Faults, name: str
) -> tuple[str | None, dict[str, tuple[Any, ...]]]:
    """The digest that a loaded checkpoint says it has, and its tables."""
    about = faults.query(
        "select obj_description(oid, 'pg_namespace') from pg_namespace "
        "where nspname = %s",
        [name],
    )
    if not about:
        return None, {}
    tables = faults.query(
        "select relname from pg_class where relnamespace = %s::regnamespace "
        "and relkind in ('r', 'v')",
        [name],
    )
    digest = json.loads(about[0][0].partition(": ")[2])["digest"]
    return digest, {
        table: faults.query(
            f'select count(*), sum(hashtext(t::text)) from "{name}"."{table}" as t'
        )[0]
        for (table,) in tables
    }


def test_loading(faults: Faults, checkpoints: list[Path]) -> None:
    """Either the whole earlier checkpoint is there, or the whole new one."""

    def loader(folder: Path, log: Path) -> Popen[bytes]:
        with log.open("wb") as output:
            return Popen(
                [
                    *(sys.executable, database.PROJECT / "scripts/load_checkpoint.py"),
                    *(folder, "--name", LOADED, "--if-changed"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def connected() -> bool:
        return bool(faults.sessions("dbt_nn"))

    known: dict[str | None, Any] = {None: {}}
    digests = []
    for folder in checkpoints:
        load_checkpoint(folder, WHOLE)
        digest, tables = contents(faults, WHOLE)
        known[digest] = tables
        digests.append(digest)
    assert len(known) == 3

    # how long an undisturbed one is connected
    faults.query(f"drop schema if exists {LOADED} cascade; select 1")
    run = loader(TWIN, faults.folder / "log")
    while not connected():
        assert run.poll() is None
        time.sleep(0.003)
    started = time.monotonic()
    while connected():
        duration = time.monotonic() - started
    assert run.wait() == 0
    faults.query(f"drop schema {LOADED} cascade; select 1")

    earlier = None
    wanted = 0
    while sum(faults.counts.values()) < LOADS:
        folder = checkpoints[wanted]
        for _ in range(faults.random.randint(1, 3)):
            stopped = faults.disturb(
                lambda log, folder=folder: loader(folder, log),
                "dbt_nn",
                connected,
                faults.random.uniform(0, duration),
                "loading",
            )
            found, tables = contents(faults, LOADED)
            assert found in (earlier, digests[wanted])
            assert tables == known[found]
            if not stopped:
                break
        load_checkpoint(folder, LOADED)
        found, tables = contents(faults, LOADED)
        assert found == digests[wanted]
        assert tables == known[found]
        assert not faults.query(
            "select nspname from pg_namespace where nspname like 'dbt_nn_loading%%'"
        )
        earlier, wanted = found, 1 - wanted
    for name in (LOADED, WHOLE):
        faults.query(f"drop schema {name} cascade; select 1")


# --- Runs of a network --------------------------------------------------------


@dataclass
class Disturbed:
    """The runs of a network in one schema, and what they have made."""

    faults: Faults
    runs: Gpt2 | Ddpm
    made: str  # its table of outputs, which stay from run to run
    key: str  # of an output
    step: str  # of its parts

    @property
    def parts(self) -> str:
        return f"{self.runs.schema}.{self.runs.network}_{self.made}"

    def models(self) -> int:
        folder = self.runs.project / "models" / self.runs.network
        return len(list(folder.rglob("*.sql")))

    def count(self) -> int:
        """Of the steps that are committed."""
        rows = self.faults.query(
            f"select count(distinct ({self.key}, {self.step})) from {self.parts}"
        )
        return rows[0][0] if rows else 0

    def finished(self) -> set[int]:
        """What is complete; a row that is wrong is found to be so once more."""
        if self.made == "samples":
            return set()
        rows = self.faults.query(
            f"select prompt_id from {self.runs.schema}.{self.runs.network}_prompts "
            "where finished_at is not null and error is null"
        )
        return {row[0] for row in rows}

    def rows(self) -> set[tuple[Any, ...]]:
        """Each with the transaction that wrote it, and where it is."""
        return set(
            self.faults.query(
                f"select {self.key}, {self.step}, ctid::text, xmin::text "
                f"from {self.parts}"
            )
        )

    def point(
        self, kind: str, models: tuple[int, int] | None = None
    ) -> tuple[str, Callable[[], bool]]:
        """A random one of a kind, and the condition that it is reached."""
        choice = self.faults.random
        if kind == "model":
            wanted = choice.randint(*(models or (1, self.models())))
            seen: set[str] = set()
            lease = (
                f"select model from {self.runs.schema}.network_leases "
                "where network = %s and model is not null and idle_since is null"
            )

            def reached() -> bool:
                seen.update(
                    row[0] for row in self.faults.query(lease, [self.runs.network])
                )
                return len(seen) >= wanted

            return f"model {wanted}", reached
        if kind == "finished":
            before = len(self.finished())
            wanted = choice.randint(1, 2)
            return f"finished {wanted}", lambda: len(self.finished()) >= before + wanted
        start = self.count()
        wanted = choice.randint(1, 8)
        return f"{kind} {wanted}", lambda: self.count() >= start + wanted

    def disturb(self, kind: str) -> bool:
        """Disturb a run at a point of this kind; false if it ended before.

        What was committed stays where it is. Of that, a crash may lose what was
        made since the run began, unless it is finished.
        """
        place, reached = self.point(kind)
        at_start = self.rows()
        kept: dict[str, Any] = {}

        def remember() -> None:
            kept["finished"] = self.finished()
            kept["rows"] = self.rows()

        stopped = self.faults.disturb(
            self.runs.start,
            "dbt",
            reached,
            self.faults.random.uniform(0, 0.06),
            place,
            remember,
        )
        self.runs.connection = self.faults.connection
        if not stopped:
            return False
        self.check_unlogged()
        found = self.rows()
        assert at_start <= found
        assert kept["finished"] <= self.finished()
        assert {
            row
            for row in kept["rows"]
            if not self.faults.crashed or row[0] in kept["finished"]
        } <= found
        return True

    def check_unlogged(self) -> None:
        """Only what a run makes again is lost in a crash."""
        layers = self.runs.project / "models" / self.runs.network / "layers"
        allowed = {path.stem for path in layers.rglob("*.sql")}
        found = self.faults.query(
            "select relname from pg_class where relpersistence = 'u' "
            "and relkind = 'r' and relnamespace::regnamespace::text = any(%s)",
            [[self.runs.schema, f"{self.runs.schema}_{self.runs.network}"]],
        )
        assert {row[0] for row in found} <= allowed | {
            *("fingerprints", "network_leases"),
            *("form_automata", "form_vocabularies", "form_masks"),
        }

    def disturb_all(self, points: dict[str, int], job: Callable[[int], Any]) -> int:
        """Jobs, each until it is done, until there was a fault at each point."""
        waiting = list(Counter(points).elements())
        self.faults.random.shuffle(waiting)
        for number in range(20):
            job(number)
            before = self.rows()
            done = False
            while waiting and not done:
                if self.disturb(waiting[-1]):
                    waiting.pop()
                else:
                    done = True
            self.runs.run()
            assert before <= self.rows()
            if not waiting:
                return number + 1
        pytest.fail(f"the jobs were too short for {waiting}")


def drop_schemas(runs: Gpt2 | Ddpm) -> None:
    for schema in (runs.schema, f"{runs.schema}_{runs.network}"):
        runs.execute(f"drop schema if exists {schema} cascade")


def assert_near(found: list[Row], expected: list[Row], ignored: set[str]) -> None:
    assert len(found) == len(expected) > 0
    for ours, other in zip(found, expected, strict=True):
        for name in other.keys() - ignored:
            if isinstance(other[name], float):
                wanted = pytest.approx(other[name], rel=TOLERANCE, abs=TOLERANCE)
                assert ours[name] == wanted, (name, ours)
            else:
                assert ours[name] == other[name], (name, ours, other)


def assert_same_completions(found: dict[int, Row], expected: dict[int, Row]) -> None:
    assert list(found) == list(expected)
    assert_near(list(found.values()), list(expected.values()), IGNORED | {"tokens"})
    for prompt_id, row in expected.items():
        if row["tokens"]:
            assert_near(found[prompt_id]["tokens"], row["tokens"], IGNORED)


def prompts(job: int) -> list[Row]:
    """A batch each; one is wrong, and one only scored."""
    texts = ["It is a truth", "", "Elinor and Marianne", "Mr. Knightley said", "Anne"]
    rows: list[Row] = [
        {
            "prompt_id": 100 * job + n,
            "prompt": f"{text} {job}",
            "max_new_tokens": 6 + 5 * n,
            "seed": job,
            "do_sample": n % 2 == 0,
            "prompt_logprobs": n == 3,
            "stop_strings": ["ex"] if n == 4 else None,
        }
        for n, text in enumerate(texts)
    ]
    return [
        *rows,
        {"prompt_id": 100 * job + 50, "prompt": "wrong", "max_new_tokens": -1},
        {"prompt_id": 100 * job + 51, "prompt": "She was", "max_new_tokens": 0},
    ]


@pytest.fixture
def text_runs(
    faults: Faults, dbt: Dbt, folders: dict[str, Path], project: Path
) -> Callable[[str], Gpt2]:
    """Make the text network's runs in a schema."""
    load_checkpoint(folders[TEXT], TEXT)

    def make(schema: str) -> Gpt2:
        return Gpt2(
            dbt, faults.connection, schema, project / f"target_{schema}", TEXT, project,
            {"batch_memory": "1kB"},
        )  # fmt: skip

    return make


def of_text(faults: Faults, runs: Gpt2) -> Disturbed:
    return Disturbed(faults, runs, "completion_tokens", "prompt_id", "position")


def test_text(faults: Faults, text_runs: Callable[[str], Gpt2]) -> None:
    runs = text_runs(SCHEMA)
    disturbed = of_text(faults, runs)
    jobs = disturbed.disturb_all(
        TEXT_POINTS, lambda job: runs.write_prompts(prompts(job))
    )
    other = text_runs(UNDISTURBED)
    other.write_prompts(row for job in range(jobs) for row in prompts(job))
    other.run()
    assert_same_completions(runs.completions(), other.completions())
    for name, order in {
        "scores": "prompt_id",
        "token_scores": "prompt_id, position",
    }.items():
        ours, theirs = (
            each.query(f"select * from {each.schema}.{TEXT}_{name} order by {order}")
            for each in (runs, other)
        )
        assert_near(ours, theirs, IGNORED)
    for each in (runs, other):
        drop_schemas(each)


def test_begun_anew(faults: Faults, text_runs: Callable[[str], Gpt2]) -> None:
    """What a killed --full-refresh has not come to is not taken for its own."""
    runs = text_runs(SCHEMA)
    disturbed = of_text(faults, runs)
    runs.write_prompts(prompts(0))
    runs.run()
    expected = runs.completions()
    faults.kinds = ["process", "session"]  # in a crash the layers are lost anyway
    while faults.counts.total() < REFRESHES:
        # its prompts are there, and few of its layers
        place, reached = disturbed.point("model", (3, 14))
        delay = faults.random.uniform(0, 0.06)
        faults.disturb(
            lambda log: runs.start(log, "--full-refresh"), "dbt", reached, delay, place
        )
        runs.connection = faults.connection
        runs.run()
        assert_same_completions(runs.completions(), expected)
        assert not runs.query(
            f"select * from {disturbed.parts} where completion_id not in "
            f"(select completion_id from {runs.schema}.{TEXT}_prompts)"
        )
    drop_schemas(runs)


def requests(job: int) -> list[Row]:
    """A batch each."""
    return [
        {"image_id": n, "scheduler": scheduler, "num_inference_steps": 20 + 4 * n}
        | {"seed": 10 * job + n, "eta": eta}
        for n, (scheduler, eta) in enumerate([("ddpm", None), ("ddim", 0.5)])
    ]


def test_images(
    faults: Faults, dbt: Dbt, folders: dict[str, Path], project: Path
) -> None:
    load_checkpoint(folders[IMAGE], IMAGE)

    def make(schema: str) -> Ddpm:
        return Ddpm(
            dbt, faults.connection, schema, project / f"target_{schema}", IMAGE,
            project, {"batch_memory": "1kB"},
        )  # fmt: skip

    runs = make(SCHEMA)
    disturbed = Disturbed(faults, runs, "samples", "image_id", "step")
    rows: list[Row] = []

    def job(number: int) -> None:
        """Further images; those before stay as they are."""
        rows.extend(
            row | {"image_id": 100 * number + row["image_id"]}
            for row in requests(number)
        )
        runs.write_requests(rows)

    disturbed.disturb_all(IMAGE_POINTS, job)
    other = make(UNDISTURBED)
    other.draw(rows)
    assert runs.rows() == other.rows()
    for each in (runs, other):
        drop_schemas(each)
