"""Whole commands: the loader, dbt run, sessions side by side, make demo."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from psycopg2 import sql
from psycopg2.extras import execute_values

from bench.cases import Case, Pace, Quantity, Step, Unavailable
from bench.encoder import write_texts
from bench.images import image_network
from bench.project import Project, as_variables, load
from bench.sizes import Sizes
from bench.texts import TWIN, network_124m, random_tokens
from dbt_nn.database import PROJECT, DatabaseError

UNET_TWIN = PROJECT / "checkpoints" / "ddpm-twin"
PROMPT_TOKENS = range(5, 61)
COPY_BYTES = 2 << 20  # of a call, as the loader's


# --- Parts --------------------------------------------------------------------


def loading(sizes: Sizes) -> Iterator[Case]:
    """GPT-2 124M: the loader beside a raw binary COPY of the same tables."""
    yield Case(
        "load",
        "loading float32 weights",
        "raw binary COPY",
        load_again,
        copy_again,
        pace=Pace(warm=0, least=3, most=3),
        repeats=0,
    )


def fixed(sizes: Sizes) -> Iterator[Case]:
    """Dbt run of the bundled GPT-2 beside as many empty tables."""
    yield Case(
        "fixed",
        f"dbt run --select gpt2, bundled network, {sizes.new_tokens} tokens",
        "dbt run of as many empty tables",
        run_bundled,
        run_empty,
        pace=Pace(least=3, most=3),  # the one before them parses the projects
        repeats=0,
    )


def sessions(sizes: Sizes) -> Iterator[Case]:
    """Dbt run --threads 2 beside --threads 1: prompts, images, texts."""
    for key in sizes.sessions:
        what, network, prepare = side_by_side(sizes)[key]
        yield Case(
            f"sessions.{key}",
            f"two sessions, {what}",
            "one session, here",
            partial(run_sessions, 2, network, prepare),
            partial(run_sessions, 1, network, prepare),
            quantities=(Quantity("run", "dbt run"), Quantity("loop", "its loop")),
            pace=Pace(warm=0, least=1, most=3, seconds=60),
            repeats=0,
        )


def demo(sizes: Sizes) -> Iterator[Case]:
    """Make demo in a fresh copy, packages and server included."""
    yield Case(
        "demo",
        "make demo in a fresh copy, packages included",
        "",
        make_demo,
        None,
        pace=Pace(warm=0, least=1, most=1),
        repeats=0,
    )


# --- Loading ------------------------------------------------------------------


def load_again(project: Project) -> Step:
    """The loader, Python's start and checks included."""
    folder, schema = network_124m(project), f"{project.schema}_again"

    def empty() -> None:
        project.drop(schema)
        os.sync()  # no write of before is in the way

    return Step(lambda: load(folder, schema), empty)


def copy_again(project: Project) -> Step:
    """COPY of what the loader made."""
    schema = project.load(network_124m(project), "124m_float32", "--dtype", "float32")
    to = f"{project.schema}_copy"
    tables = copied_tables(project, schema)

    def empty() -> None:
        project.drop(to)
        os.sync()

    return Step(lambda: copy_tables(project, tables, schema, to), empty)


def copied_tables(
    project: Project, schema: str
) -> list[tuple[str, str | None, io.BytesIO]]:
    """The checkpoint's tables: name, primary key, binary content."""
    cursor = project.execute(
        """
        select class.relname, pg_get_constraintdef(primary_key.oid)
        from pg_class as class
        left join pg_constraint as primary_key
            on class.oid = primary_key.conrelid and primary_key.contype = 'p'
        where class.relnamespace = %s::regnamespace and class.relkind = 'r'
        """,
        schema,
    )
    tables = [(name, key, io.BytesIO()) for name, key in cursor.fetchall()]
    for name, _, content in tables:
        copy = sql.SQL("copy {} to stdout (format binary)")
        cursor.copy_expert(copy.format(sql.Identifier(schema, name)), content)
    return tables


def copy_tables(
    project: Project,
    tables: list[tuple[str, str | None, io.BytesIO]],
    schema: str,
    to: str,
) -> None:
    """Write the same tables in one transaction, the fastest way found."""
    cursor = project.execute("begin")
    cursor.execute(f"create schema {to}")
    for name, key, content in tables:
        content.seek(0)
        names = {
            "table": sql.Identifier(to, name),
            "like": sql.Identifier(schema, name),
            "key": sql.SQL(key or ""),
        }
        create = "create table {table} (like {like} including storage)"
        cursor.execute(sql.SQL(create).format(**names))
        copy = sql.SQL("copy {table} from stdin (format binary)").format(**names)
        cursor.copy_expert(copy, content, size=COPY_BYTES)
        if key:
            cursor.execute(sql.SQL("alter table {table} add {key}").format(**names))
    cursor.execute("commit")


# --- dbt run ------------------------------------------------------------------


def run_bundled(project: Project) -> Step:
    """The bundled network and a prompt that is another each time."""
    project.execute("drop table if exists {schema}.fixed_prompts")
    project.execute(
        "create table {schema}.fixed_prompts as "
        "select 0 as prompt_id, 'It is a truth' as prompt"
    )
    variables = {
        "gpt2_prompts": f"{project.schema}.fixed_prompts",
        "gpt2_options": {"max_new_tokens": project.sizes.new_tokens},
        "gpt2_checkpoint": project.load(TWIN, "twin"),
    }
    options = as_variables(variables)

    def another_prompt() -> None:
        # what is complete already is not completed again
        project.execute("update {schema}.fixed_prompts set prompt_id = prompt_id + 1")

    return Step(
        lambda: project.call_dbt("run", "--select", "gpt2", *options),
        another_prompt,
    )


def run_empty(project: Project) -> Step:
    """As many models that do nothing."""
    count = len(list((PROJECT / "models" / "gpt2").rglob("*.sql")))
    empty = project.folder / "empty"
    shutil.rmtree(empty, ignore_errors=True)
    (empty / "models").mkdir(parents=True)
    (empty / "dbt_project.yml").write_text(
        "name: empty\nprofile: dbt_nn\nmodels: {+materialized: table}\n"
        "flags: {send_anonymous_usage_stats: false}\n",
        encoding="utf-8",
    )
    for number in range(count):
        path = empty / "models" / f"empty_{number}.sql"
        path.write_text(f"select {number} as number\n", encoding="utf-8")
    other = project.second()
    return Step(lambda: other.call_dbt("run", root=empty))


# --- Sessions side by side ----------------------------------------------------


Prepare = Callable[[Project], dict[str, Any]]  # what a run reads; dbt's vars


def side_by_side(sizes: Sizes) -> dict[str, tuple[str, str, Prepare]]:
    """Words, network and preparation of each run."""
    prompts, images = sizes.prompts, sizes.drawn
    new, steps = f"{sizes.completion} tokens of each", f"{sizes.steps} steps"
    return {
        "gpt2_bundled": (
            f"{prompts[0]:,} prompts, bundled network, {new}",
            "gpt2",
            partial(write_prompts, prompts[0], lambda _: TWIN, "twin"),
        ),
        "gpt2_124m": (
            f"{prompts[1]:,} prompts, GPT-2 124M, {new}",
            "gpt2",
            partial(write_prompts, prompts[1], network_124m, "124m_float32"),
        ),
        "ddpm_bundled": (
            f"images, {images[0]}, bundled network, {steps}",
            "ddpm",
            partial(ask_for_images, images[0], lambda _: UNET_TWIN, "unet_twin"),
        ),
        "ddpm_full": (
            f"images, {images[1]}, shape of ddpm-butterflies-64, {steps}",
            "ddpm",
            partial(ask_for_images, images[1], image_network, "butterflies"),
        ),
        "minilm": (f"{sizes.texts:,} texts, MiniLM", "minilm", write_texts),
    }


def write_prompts(
    count: int, checkpoint: Callable[[Project], Path], name: str, project: Project
) -> dict[str, Any]:
    """Prompts of 5 to 60 tokens, of all lengths alike."""
    folder = checkpoint(project)
    longest = random_tokens(count, PROMPT_TOKENS[-1], folder).tolist()
    rows = [
        (number, row[: PROMPT_TOKENS[number % len(PROMPT_TOKENS)]])
        for number, row in enumerate(longest)
    ]
    project.execute("drop table if exists {schema}.bench_prompts")
    project.execute(
        "create table {schema}.bench_prompts "
        "(prompt_id integer, prompt_token_ids integer[])"
    )
    insert = f"insert into {project.schema}.bench_prompts values %s"
    execute_values(project.connection.cursor(), insert, rows)
    return {
        "gpt2_prompts": f"{project.schema}.bench_prompts",
        "gpt2_checkpoint": project.load(folder, name),
        "gpt2_options": {"max_new_tokens": project.sizes.completion},
    }


def ask_for_images(
    count: int, checkpoint: Callable[[Project], Path], name: str, project: Project
) -> dict[str, Any]:
    return {
        "ddpm_checkpoint": project.load(checkpoint(project), name),
        "ddpm_options": {
            "batch_size": count,
            "num_inference_steps": project.sizes.steps,
        },
    }


def run_sessions(
    threads: int, network: str, prepare: Prepare, project: Project
) -> Step:
    """All anew with that many sessions; seconds of the run, and of its loop."""
    options = ["--select", network, *as_variables(prepare(project))]
    project.call_dbt("parse", *options[2:])
    run = ["run", *options, "--full-refresh", "--threads", str(threads)]
    return Step(lambda: project.call_dbt(*run), measures=True)


# --- make demo ----------------------------------------------------------------


def make_demo(project: Project) -> Step:
    """`make demo` in a copy without packages, server or caches."""
    folder = Path(tempfile.mkdtemp(dir=project.folder))
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DBT_", "VIRTUAL_ENV"))
    }
    environment |= {
        "PYTHON": sys.executable,
        "DBT_NN_DATA": str(folder / "postgres"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PIP_CACHE_DIR": str(folder / "cache" / "pip"),
        "HF_HOME": str(folder / "cache" / "huggingface"),
    }
    for passed in (project.folder, folder):
        passed.chmod(0o711)  # the server's user, if we are root, has to pass
    copy_project(folder / "clone")

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=folder / "clone",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def run() -> list[float]:
        started = time.perf_counter()
        try:
            done = call("make", "demo")
            seconds = time.perf_counter() - started
        finally:
            call(sys.executable, "scripts/server.py", "delete")
        if "packages could not be installed" in done.stdout:
            raise Unavailable("its packages can't be had here")
        if done.returncode:
            raise DatabaseError(f"make demo failed:\n{done.stdout}")
        return [seconds]

    return Step(run, measures=True)


def copy_project(to: Path) -> None:
    """Copy the files that git has, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, to / name)
