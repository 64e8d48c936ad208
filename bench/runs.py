"""The parts of scripts/bench.py on loading, on dbt and on larger networks."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from psycopg2 import sql
from transformers import GPT2LMHeadModel

from bench.common import (
    SCHEMA,
    TEXT,
    Bench,
    Connection,
    Row,
    drop,
    flush_disk,
    in_turn,
    load,
    random_tokens,
    read_prompts,
    say,
    step_of,
    timed,
)
from bench.text import text_network
from dbt_nn.database import PROJECT, DatabaseError, profiles_path
from dbt_nn.generate import generate, write

COPY_BYTES = 2 << 20  # of a call, as the loader's


def loading(bench: Bench, folder: Path) -> Iterator[Row]:
    """The loader, Python's start and checks included, beside COPY of its tables."""
    say("load")
    again, raw = f"{TEXT}_again", f"{SCHEMA}_copy"
    tables = copied_tables(bench.connection)

    def empty() -> None:
        drop(bench.connection, again, raw)
        flush_disk()

    times = in_turn(
        lambda: load(folder, again),
        lambda: copy_tables(bench.connection, tables, raw),
        bench.sizes.repetitions,
        before=empty,
    )
    empty()
    yield timed("loading float32 weights", "raw binary COPY", 1.5, times, "s")


def copied_tables(connection: Connection) -> list[tuple[str, str | None, io.BytesIO]]:
    """The checkpoint's tables: name, primary key, binary content."""
    cursor = connection.cursor()
    cursor.execute(
        """
        select class.relname, pg_get_constraintdef(primary_key.oid)
        from pg_class as class
        left join pg_constraint as primary_key
            on class.oid = primary_key.conrelid and primary_key.contype = 'p'
        where class.relnamespace = %s::regnamespace and class.relkind = 'r'
        """,
        (TEXT,),
    )
    tables = [(name, key, io.BytesIO()) for name, key in cursor.fetchall()]
    for name, _, content in tables:
        copy = sql.SQL("copy {} to stdout (format binary)")
        cursor.copy_expert(copy.format(sql.Identifier(TEXT, name)), content)
    return tables


def copy_tables(
    connection: Connection, tables: list[tuple[str, str | None, io.BytesIO]], to: str
) -> None:
    """Write the same tables in one transaction, the fastest way found."""
    cursor = connection.cursor()
    cursor.execute("begin")
    cursor.execute(f"create schema {to}")
    for name, key, content in tables:
        content.seek(0)
        names = {
            "table": sql.Identifier(to, name),
            "like": sql.Identifier(TEXT, name),
            "key": sql.SQL(key or ""),
        }
        create = "create table {table} (like {like} including storage)"
        cursor.execute(sql.SQL(create).format(**names))
        copy = sql.SQL("copy {table} from stdin (format binary)").format(**names)
        cursor.copy_expert(copy, content, size=COPY_BYTES)
        if key:
            cursor.execute(sql.SQL("alter table {table} add {key}").format(**names))
    cursor.execute("commit")


def fixed(bench: Bench) -> Iterator[Row]:
    """A run of the bundled network, beside as many models that do nothing."""
    count = len(list((PROJECT / "models" / "gpt2").rglob("*.sql")))
    say(f"fixed: dbt run of {count} models")
    empty = bench.folder / "empty"
    (empty / "models").mkdir(parents=True)
    (empty / "dbt_project.yml").write_text(
        "name: empty\nprofile: dbt_nn\nmodels: {+materialized: table}\n"
        "flags: {send_anonymous_usage_stats: false}\n",
        encoding="utf-8",
    )
    for number in range(count):
        path = empty / "models" / f"empty_{number}.sql"
        path.write_text(f"select {number} as number\n", encoding="utf-8")
    cursor = bench.connection.cursor()
    cursor.execute(f"create schema if not exists {SCHEMA}")
    cursor.execute(
        f"create table {SCHEMA}.fixed_prompts as "
        "select 0 as prompt_id, 'It is a truth' as prompt"
    )

    def another_prompt() -> None:
        # what is complete already is not completed again
        cursor.execute(f"update {SCHEMA}.fixed_prompts set prompt_id = prompt_id + 1")

    variables = {
        "gpt2_prompts": f"{SCHEMA}.fixed_prompts",
        "gpt2_options": {"max_new_tokens": bench.sizes.new_tokens},
    }

    def run(project: Path, schema: str, *options: str) -> None:
        command = [str(Path(sys.executable).with_name("dbt")), "--quiet", "run"]
        command += ["--project-dir", str(project)]
        command += ["--profiles-dir", str(profiles_path().parent)]
        command += ["--target-path", str(bench.folder / f"target_{schema}"), *options]
        environment = {**os.environ, "DBT_NN_SCHEMA": schema}
        done = subprocess.run(
            command,
            check=False,
            env=environment,
            cwd=project,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DatabaseError(f"dbt run in {project} failed:\n{done.stdout}")

    times = in_turn(
        lambda: run(
            PROJECT, SCHEMA, "--select", "gpt2", "--vars", json.dumps(variables)
        ),
        lambda: run(empty, f"{SCHEMA}_empty"),
        bench.sizes.repetitions,
        warm=min(1, bench.sizes.repetitions - 1),  # parses the projects
        before=another_prompt,
    )
    what = f"dbt run --select gpt2, {bench.sizes.new_tokens} tokens"
    yield timed(what, f"dbt run, {count} empty tables", 1.5, times, "s")


def scale(bench: Bench, network: GPT2LMHeadModel) -> Iterator[Row]:
    """A token of other sizes: its time by the number of weights, beside 124M's."""
    context = bench.sizes.contexts[0]
    parameters = network.num_parameters()
    token_ids = random_tokens(1, context, network.config.vocab_size)
    read_prompts(bench, token_ids, TEXT)
    theirs = step_of(bench.connection, "gpt2_completion_tokens")
    for size, config in bench.sizes.scale.items():
        say(f"scale: {size}")
        name, schema = f"gpt2_{size}", f"{SCHEMA}_scale"
        folder = bench.folder / name
        other = text_network(folder, **config)
        count, vocabulary = other.num_parameters(), other.config.vocab_size
        del other
        load(folder, schema)
        project = generated_project(folder, bench.folder / f"project_{size}", name)
        shutil.rmtree(folder)
        token_ids = random_tokens(1, context, vocabulary)
        # more than the default allows for the largest
        memory = {"resident_memory": "8GB"}
        read_prompts(bench, token_ids, schema, name, project, **memory)
        ours = step_of(bench.connection, f"{name}_completion_tokens")
        steps = max(bench.sizes.steps // 2, 1)
        times = in_turn(ours, theirs, steps, warm=2)
        drop(bench.connection, schema, f"{SCHEMA}_{name}")
        times = {
            "ours": times["ours"] / count * 1e6,
            "theirs": times["theirs"] / parameters * 1e6,
            "ratio": times["ratio"] / count * parameters,
        }
        what = f"scale: a token by million weights, {count / 1e6:,.1f} M"
        yield timed(what, f"{parameters / 1e6:,.1f} M", 1.5, times)


def generated_project(checkpoint: Path, folder: Path, name: str) -> Path:
    """A copy of the project with one network, made for a checkpoint."""
    for part in ("macros", "seeds", "tests/generic"):
        shutil.copytree(PROJECT / part, folder / part)
    shutil.copy(PROJECT / "dbt_project.yml", folder)
    write(folder / "models" / name, generate(checkpoint, name))
    return folder
