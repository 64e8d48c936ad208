"""Look inside a network: what each layer would have said, as a table and as a page.

    dbt-nn look "Elizabeth was"
    dbt-nn look "Elizabeth was" max_new_tokens=40 seed=7 --output elizabeth.html
    dbt-nn look --image seed=3 num_inference_steps=20

runs the network on the prompt, 16 tokens far unless max_new_tokens says another
number, and builds the relations that look inside it. The terminal shows the logit
lens: the likeliest next token at each place if the network had ended at that layer.
The page, one HTML file that loads nothing, has it all: where each head looks, what
each token owes to which earlier one, and the SQL of each number. All is in schemas
of its own, dbt_nn_command_line and dbt_nn_command_line_gpt2 if the profile's is
dbt_nn. The options are those of gpt2_prompts, with their names in transformers.
Without arguments the environment's PROMPT and OPTIONS are taken.

With --image an image network draws, and the page shows how the image comes out of
the noise: the predicted picture at each step, each layer's activations as pictures.
The options are then those of ddpm_requests.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import psycopg2
from psycopg2 import sql
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from dbt_nn.cli import checkpoint_option, command
from dbt_nn.complete import prompt_of_make
from dbt_nn.database import DatabaseError, connect, project_settings, quoted
from dbt_nn.page import image as image_page
from dbt_nn.page import text as text_page
from dbt_nn.page.build import build
from dbt_nn.runner import (
    PROMPTS,
    check_network,
    dbt,
    parse_options,
    printable,
    use_own_schema,
    write_options,
    write_row,
)

PAGE = Path("output") / "look.html"
NEW_TOKENS = 16  # as many columns as a page shows without scrolling
CELL = 12  # characters of a token in the terminal, at most
# Stops of the colour scale, from 0 to 1: those of page.css.
AMOUNT = (
    (255, 255, 255),
    (207, 225, 242),
    (106, 174, 214),
    (32, 112, 180),
    (8, 48, 107),
)


# --- The terminal -----------------------------------------------------------------


def shade(share: float) -> Style:
    """The style of a probability: a stronger blue for more."""
    at = min(max(share, 0), 1) * (len(AMOUNT) - 1)
    low = min(int(at), len(AMOUNT) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - low))
        for a, b in zip(AMOUNT[low], AMOUNT[low + 1], strict=True)
    )
    ink = "#000000" if share < 0.6 else "#ffffff"
    return Style.parse(f"{ink} on rgb({red},{green},{blue})")


def shown(piece: str, width: int = CELL) -> str:
    """A token as a cell: one line, blanks as dots, cut to a width."""
    text = printable(piece).replace("\n", "\u23ce").replace("\t", "\u2409")
    text = text.replace(" ", "\u00b7")
    while cell_len(text) > width:
        text = text[:-2] + "\u2026"
    return text


def columns_that_fit(data: Mapping[str, Any], widths: list[int], room: int) -> range:
    """The places to show: from where the network begins to write, if not all fit."""
    tokens = data["tokens"]
    written = [i for i, token in enumerate(tokens) if token["generated"]]
    first = max((written[0] if written else len(tokens)) - 1, 0)
    last = first
    while last < len(tokens) and sum(widths[first : last + 1]) <= room:
        last += 1
    while last > first and first > 0 and sum(widths[first - 1 : last]) <= room:
        first -= 1
    return range(first, max(last, first + 1))


def lens_table(data: Mapping[str, Any], console: Console) -> tuple[Table, str]:
    """The logit lens, cut to the terminal's width, and what is below it.

    In colour a cell's background is the probability; without, it is written. The
    token that came is underlined, or has a star.
    """
    lens, tokens = data["lens"], data["tokens"]
    pieces = lens["pieces"]
    colour = console.color_system is not None and not console.no_color
    cells: list[list[Text]] = []
    for guesses in lens["top"]:
        row = []
        for place, (token, guess) in enumerate(zip(tokens, guesses, strict=True)):
            index, share = guess[0]
            piece = shown(pieces[index])
            came = lens["ids"][index] == token["nextId"]
            if colour:
                row.append(Text(piece, shade(share) + Style(underline=came)))
            else:
                # numbers below each other
                others = (pieces[label[place][0][0]] for label in lens["top"])
                wide = max(cell_len(shown(other)) for other in others)
                blanks = " " * (wide - cell_len(piece))
                row.append(Text(f"{piece}{'*' if came else ' '}{blanks}{share:5.0%}"))
        cells.append(row)
    heads = [Text(shown(token["piece"])) for token in tokens]
    widths = [
        max(cell_len(text.plain) for text in column) + 1
        for column in zip(heads, *cells, strict=True)
    ]
    label_width = max(map(len, lens["labels"])) + 1
    places = columns_that_fit(data, widths, console.width - label_width)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("after", no_wrap=True)
    for place in places:
        head = heads[place].copy()
        head.stylize("bold" if not tokens[place]["generated"] else "")
        table.add_column(head, no_wrap=True, min_width=widths[place] - 1)
    for label, row in zip(lens["labels"], cells, strict=True):
        table.add_row(
            label,
            *(fill(row[place], widths[place] - 1) for place in places),
        )
    return table, caption(places, len(tokens), colour=colour)


def caption(places: range, total: int, *, colour: bool) -> str:
    """What is below the table."""
    lines = []
    if len(places) < total:
        lines.append(
            f"Places {places[0]} to {places[-1]} of 0 to {total - 1}: the page has all."
        )
    if colour:
        lines.append(
            "The stronger the blue, the likelier. Underlined: the one that came."
        )
    else:
        lines.append(
            "The likeliest next token and its probability. *: the one that came."
        )
    return "\n".join(lines)


def fill(cell: Text, width: int) -> Text:
    """The cell at its column's width, so that its colour fills it."""
    cell = cell.copy()
    cell.append(" " * (width - cell_len(cell.plain)))
    return cell


# --- The command --------------------------------------------------------------------


def completion(network: str, schema: str) -> tuple[str, str | None] | None:
    """(prompt, error) of the command line's last run, if there is one."""
    table = sql.Identifier(schema, f"{network}_completions")
    statement = sql.SQL("select prompt, error from {} where prompt_id = 1")
    with closing(connect()) as connection, connection.cursor() as cursor:
        try:
            cursor.execute(statement.format(table))
            return cursor.fetchone()
        except psycopg2.errors.UndefinedTable:
            return None


def checkpoint_of(network: str, checkpoint: str | None) -> str:
    """The schema of the checkpoint that runs."""
    if checkpoint:
        return checkpoint
    given = project_settings().get("vars") or {}
    name = f"{network}_checkpoint"
    return str(given.get(name) or given.get("dbt_nn", {}).get(name) or network)


def again_command(
    arguments: list[str], options: dict, checkpoint: str | None, network: str
) -> str:
    """The command line that makes the page again."""
    values = (
        value if isinstance(value, str) else json.dumps(value)
        for value in options.values()
    )
    words = [*arguments, *map("{}={}".format, options, values)]
    if checkpoint:
        words += ["--checkpoint", checkpoint]
    if network not in ("gpt2", "ddpm"):
        words += ["--network", network]
    return shlex.join(["dbt-nn", "look", *words])


def heading(network: str, checkpoint: str, again: str) -> dict[str, str]:
    """The head of a page."""
    return {
        "network": network,
        "checkpoint": checkpoint,
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": again,
    }


def page_data(
    network: str, schema: str, prompt: str, checkpoint: str, again: str
) -> dict[str, Any]:
    """All that the page of a text shows."""
    data = text_page.read(network, schema)
    prompt_tokens = sum(not token["generated"] for token in data["tokens"])
    last = data["tokens"][-1]["next"] is not None
    return {
        **data,
        **heading(network, checkpoint, again),
        "shown_prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(data["tokens"]) - prompt_tokens + last,
    }


def write_page(path: Path, page: str) -> None:
    """Write it, with the folder if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DatabaseError(
            f"the page can't be written to {path}: {error.strerror}. --output names "
            "another file"
        ) from None


def look_at_text(
    prompt: str, options: dict, checkpoint: str | None, network: str, output: Path
) -> int:
    """Run, show and write what a text network thinks; the exit status."""
    chosen = {"max_new_tokens": NEW_TOKENS, **options}
    named = checkpoint_of(network, checkpoint)
    schema, variables = use_own_schema(network, checkpoint)
    variables[f"{network}_prompts"] = quoted(schema, PROMPTS)
    write_options(schema, network, chosen)
    row = {"prompt_id": ("integer", 1), "prompt": ("text", prompt)}
    write_row(schema, PROMPTS, row)
    failed = dbt("run", "--select", network, f"{network}_insight", variables=variables)
    completed, error = completion(network, schema) or (None, None)
    if error and completed == prompt:  # then nothing is there to look into
        raise DatabaseError(f"the prompt: {error}")
    if failed:
        return 1
    again = again_command([prompt], chosen, checkpoint, network)
    data = page_data(network, schema, prompt, named, again)
    if not data["lens"]:
        raise DatabaseError(
            f"{network}_logit_lens has no rows: write the network's models anew by "
            "`dbt-nn generate`"
        )
    console = Console(highlight=False, soft_wrap=False)
    table, below = lens_table(data, console)
    console.print(table)
    console.print(below, style="dim")
    write_page(output, build("text", data))
    print(f"\n{output}")
    return 0


def look_at_images(
    options: dict, checkpoint: str | None, network: str, output: Path
) -> int:
    """Draw, and write how the images come out of the noise; the exit status."""
    named = checkpoint_of(network, checkpoint)
    schema, variables = use_own_schema(network, checkpoint)
    write_options(schema, network, options)
    if dbt("run", "--select", network, f"{network}_insight", variables=variables):
        return 1
    data = image_page.read(network, schema)
    data |= heading(
        network, named, again_command(["--image"], options, checkpoint, network)
    )
    data["drawn"] = image_page.facts(data)
    write_page(output, build("image", data))
    print(output)
    return 0


@command(__doc__)
@click.argument("prompt", required=False)
@click.argument("options", nargs=-1, metavar="[NAME=VALUE]...")
@checkpoint_option
@click.option(
    "--network",
    metavar="NAME",
    help="A network with models of insight: its folder in models/ (gpt2, or ddpm "
    "with --image).",
)
@click.option("--image", is_flag=True, help="Look at an image network.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    metavar="FILE",
    help=f"Where the page is written ({PAGE}).",
)
def main(
    prompt: str | None,
    options: tuple[str, ...],
    checkpoint: str | None,
    network: str | None,
    image: bool,
    output: Path,
) -> int:
    """Carry out the command line."""
    network = network or ("ddpm" if image else "gpt2")
    if image:  # there is no prompt, so that all arguments are options
        given = parse_options([prompt, *options] if prompt else [])
        check_network(network, "image", insight=True)
        return look_at_images(given, checkpoint, network, output)
    if prompt is None:
        prompt = prompt_of_make(os.environ.get("PROMPT"))
    if prompt is None:
        raise click.UsageError('no prompt: dbt-nn look "Elizabeth was"')
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DatabaseError(f"the prompt is not UTF-8: {prompt!a}") from None
    given = parse_options(options)
    check_network(network, "text", insight=True)
    return look_at_text(prompt, given, checkpoint, network, output)
