"""Complete one prompt: the short way to `dbt run --select gpt2`.

    dbt-nn complete "It is a truth" temperature=0.8 top_k=40 seed=7
    dbt-nn complete "I wish you a happy New" --next 10
    dbt-nn complete "The capital of France is" --network smol
    dbt-nn complete --chat "Who wrote Emma?" --system "Be brief."

writes the prompt into a table, runs dbt on it and shows the text as it grows, a |
between prompt and completion; with --next the likeliest next tokens. With --chat the
prompt is what a user says, in the form of the checkpoint's chat template, and the
answer alone is shown. All is in
schemas of its own, dbt_nn_command_line and dbt_nn_command_line_gpt2 if the
profile's is dbt_nn: the completions of your own table stay as they are. The options
are those of gpt2_prompts, with their names in transformers. --network names another
text network of the project. Without arguments the environment's PROMPT and OPTIONS are
taken.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing, suppress
from typing import NamedTuple

import click
import psutil
from psycopg2 import sql

from dbt_nn.cli import checkpoint_option, command
from dbt_nn.database import DatabaseError, connect, quoted, settings
from dbt_nn.runner import (
    PROMPTS,
    Pieces,
    check_network,
    dbt,
    parse_options,
    printable,
    query,
    use_own_schema,
    write_options,
    write_row,
)

BORDER = "|"  # between a prompt and its completion


class Completion(NamedTuple):
    """A row of a network's completions."""

    prompt_id: object
    prompt: str
    completion: str | None
    finish_reason: str | None
    error: str | None


def read_completions(network: str = "gpt2") -> list[Completion]:
    """All of them in the order of prompt_id."""
    table = sql.Identifier(settings()["schema"], f"{network}_completions")
    columns = sql.SQL(", ").join(map(sql.Identifier, Completion._fields))
    query = sql.SQL("select {} from {} order by prompt_id").format(columns, table)
    with closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return [Completion(*row) for row in cursor]


class Stream:
    """A prompt and its completion on stdout, as it is written."""

    def __init__(self, prompt: str, border: str = BORDER):
        self.prompt = prompt
        self.border = border
        self.shown: str | None = None  # of the completion; None: nothing yet

    def write(self, text: str) -> None:
        terminal = sys.stdout.isatty()
        # `... | head`: dbt waits forever for a callback that raises
        with suppress(OSError, ValueError):
            print(printable(text) if terminal else text, end="", flush=True)

    def begin(self) -> None:
        bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.write_style("\x1b[1m" if bold else "")
        self.write(self.prompt)
        self.write_style("\x1b[0m" if bold else "")
        self.write(self.border)
        self.shown = ""

    def write_style(self, code: str) -> None:
        with suppress(OSError, ValueError):
            print(code, end="")

    def step(self, pieces: Pieces) -> None:
        """Show what a step of the loop has brought."""
        for before, piece in pieces.values():
            if self.shown is None:
                self.begin()
                if before:  # a run that goes on where it was stopped
                    piece = "..." + piece
            self.shown += piece
            self.write(piece)

    def end(self, completion: str) -> None:
        """Show what is not shown yet."""
        if self.shown is None:
            self.begin()
        if completion.startswith(self.shown):
            self.write(completion[len(self.shown) :])
        else:
            self.write("\n\n")
            self.begin()
            self.write(completion)
        self.write("\n")


def show_next_tokens(network: str, n: int, variables: dict) -> None:
    """Print the n likeliest tokens after the prompt, as JSON to show blanks."""
    rows = query(f"{{{{ dbt_nn.next_tokens('{network}', {n}) }}}}", n, variables)
    print(f"{'rank':>4}  {'probability':>11}  {'token_id':>8}  token")
    for row in rows:
        token = printable(json.dumps(row["token"], ensure_ascii=False))
        print(
            f"{row['rank']:4d}  {float(row['probability']):11.4%}  "
            f"{row['token_id']:8d}  {token}"
        )


def prompt_of_make(given: str | None) -> str | None:
    """The prompt as it was typed: make takes blanks from the front of a variable.

    The Makefile says which process make is, where PROMPT is an argument of it.
    """
    with suppress(psutil.Error, ValueError, KeyError):
        for argument in psutil.Process(int(os.environ["MAKE_PID"])).cmdline():
            name, equals, value = argument.partition("=")
            if equals and name == "PROMPT" and value.lstrip() == (given or "").lstrip():
                return value
    return given


@command(__doc__)
@click.argument("prompt", required=False)
@click.argument("options", nargs=-1, metavar="[NAME=VALUE]...")
@checkpoint_option
@click.option("--chat", is_flag=True, help="The prompt is what a user says.")
@click.option("--system", metavar="TEXT", help="With --chat, the system prompt.")
@click.option(
    "--network",
    metavar="NAME",
    default="gpt2",
    help="A text network: its folder in models/ (gpt2).",
)
@click.option(
    "--next",
    "likeliest",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show the N likeliest next tokens instead of a completion.",
)
def main(
    prompt: str | None,
    options: tuple[str, ...],
    checkpoint: str | None,
    network: str,
    chat: bool,
    system: str | None,
    likeliest: int | None,
) -> int:
    """Carry out the command line."""
    if system is not None and not chat:
        raise click.UsageError("--system is for --chat")
    if prompt is None:
        prompt = prompt_of_make(os.environ.get("PROMPT"))
    if prompt is None:
        raise click.UsageError('no prompt: dbt-nn complete "It is a truth"')
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DatabaseError(f"the prompt is not UTF-8: {prompt!a}") from None
    chosen = parse_options(options)
    check_network(network, "text")
    if chat:
        chosen["apply_chat_template"] = True
    if system is not None:
        chosen["system_prompt"] = system
    if likeliest:
        chosen["max_new_tokens"] = 1
    schema, variables = use_own_schema(network, checkpoint)
    variables[f"{network}_prompts"] = quoted(schema, PROMPTS)
    write_options(schema, network, chosen)
    row = {"prompt_id": ("integer", 1), "prompt": ("text", prompt)}
    write_row(schema, PROMPTS, row)
    stream = Stream("", border="") if chat else Stream(prompt)
    texts = None if likeliest else stream.step
    if dbt("run", "--select", network, variables=variables, texts=texts):
        return 1
    [found] = read_completions(network)
    if found.error:
        raise DatabaseError(f"the prompt: {found.error}")
    if likeliest:
        show_next_tokens(network, likeliest, variables)
        return 0
    stream.end(found.completion)
    print(f"\n(finish_reason: {found.finish_reason})", file=sys.stderr)
    return 0
