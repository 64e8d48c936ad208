"""Complete one prompt: the short way to `dbt run --select gpt2`.

    python scripts/complete.py "It is a truth" temperature=0.8 top_k=40 seed=7

writes the prompt into a table, runs dbt on it and prints the completion. All is
in schemas of its own, dbt_nn_prompt and dbt_nn_prompt_gpt2 if the profile's is
dbt_nn: the completions of your own table stay as they are. The options are those
of gpt2_prompts, with their names in transformers.
"""

from __future__ import annotations

import argparse
import json
import os

from psycopg2 import sql

from database import PROJECT, DatabaseError, connect, run_command, settings
from runner import dbt, parse_options

TABLE = "command_line_prompts"


def use_own_schema() -> None:
    """Run dbt in schemas for the command line, and parse for them apart."""
    schema = f"{settings()['schema']}_prompt"
    os.environ["DBT_NN_SCHEMA"] = schema
    os.environ.setdefault("DBT_TARGET_PATH", str(PROJECT / "target" / "prompt"))


def write_prompt(prompt: str) -> str:
    """Make the prompt a relation; returns its name as schema.table."""
    if "\0" in prompt:
        raise DatabaseError("a prompt cannot hold the character U+0000")
    schema = settings()["schema"]
    names = {"schema": sql.Identifier(schema), "table": sql.Identifier(schema, TABLE)}
    with connect() as connection, connection.cursor() as cursor:
        for statement in (
            "create schema if not exists {schema}",
            "drop table if exists {table}",
            "create table {table} (prompt_id integer, prompt text)",
        ):
            cursor.execute(sql.SQL(statement).format(**names))
        insert = sql.SQL("insert into {table} values (1, %s)").format(**names)
        cursor.execute(insert, (prompt,))
    connection.close()
    return f"{schema}.{TABLE}"


def read_completions() -> list[tuple[str, str | None, str | None, str | None]]:
    """The rows (prompt, completion, finish_reason, error) of gpt2_completions."""
    table = sql.Identifier(settings()["schema"], "gpt2_completions")
    with connect() as connection, connection.cursor() as cursor:
        query = (
            "select prompt, completion, finish_reason, error from {} order by prompt_id"
        )
        cursor.execute(sql.SQL(query).format(table))
        rows = cursor.fetchall()
    connection.close()
    return rows


def run_gpt2(variables: dict) -> int:
    """`dbt run --select gpt2`, quiet but for the growing text and for errors."""
    return dbt("run", "--select", "gpt2", "--vars", json.dumps(variables))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "prompt",
        nargs="?",
        default=os.environ.get("PROMPT"),
        help="the text to go on from (default: the environment's PROMPT)",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="name=value",
        help="generation options, such as temperature=0.8 top_k=40 seed=7 "
        "(default: the environment's OPTIONS)",
    )
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get("CHECKPOINT") or None,
        help="schema of a loaded checkpoint (default: the project's var)",
    )
    arguments = parser.parse_args()
    if arguments.prompt is None:
        parser.error('no prompt: make gpt2 PROMPT="It is a truth"')
    use_own_schema()
    variables = {
        "gpt2_options": parse_options(arguments.options),
        "gpt2_prompts": write_prompt(arguments.prompt),
    }
    if arguments.checkpoint:
        variables["gpt2_checkpoint"] = arguments.checkpoint
    code = run_gpt2(variables)
    if code == 0:
        [(_, completion, finish_reason, error)] = read_completions()
        if error:
            raise DatabaseError(f"the prompt: {error}")
        print(f"\n{arguments.prompt}{completion}\n\n(finish_reason: {finish_reason})")
    return code


if __name__ == "__main__":
    run_command(main)
