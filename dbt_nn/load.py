"""Load a checkpoint into the database, in a schema of its own.

    dbt-nn load                              # the bundled networks
    dbt-nn load openai-community/gpt2        # into the schema gpt2
    dbt-nn load FOLDER --name letters
    dbt-nn list

SOURCE is a folder or a name on the Hugging Face Hub. Without it the networks that
come with dbt_nn are loaded, unless they are there already: two that are bundled,
and all-MiniLM-L6-v2, which is fetched (91 MB). Everything is checked
before anything is written, and written in one transaction under a passing name
that takes NAME's place at the end: whatever goes wrong, an earlier checkpoint
of that name stays as it was, and nobody ever sees half of one.

The schema holds:
    config      parameter, value: config.json, a row per key, with the defaults
                of keys that the file lacks; for GPT-2 also by the names that
                transformers has for every network (hidden_size for n_embd)
    tensors     tensor, shape, dtype, relation: which tensor is in which table
                (several, separated by ', ', for the fused q, k and v)
    vocabulary  token_id, token (its bytes), special; empty without a tokenizer
    merges      left_id, right_id, rank, token_id; both for a network of texts
    characters  first_codepoint, last_codepoint, replacement, isolated: what the
                tokenizer makes of characters that don't stay themselves; for a
                network with BERT's WordPiece
    replacements  source, replacement: what the normalizer of a Unigram has for
                characters and clusters of them; its vocabulary has a score, too
    scheduler   parameter, value: scheduler_config.json with the defaults of its
                class, a row per key; for a UNet
and a table per module, named after its path with `_` for `.`:
    linear      chunk, feature, weight vector, bias: the inputs of an output
                feature, split in equal chunks of at most CHUNK; weight is a
                halfvec with --dtype float16, and by default where the file of a
                network of the Llama family has 16 bits
    convolution the same; inputs are ordered by y, x and channel
    norm        weight vector, bias vector: one row
A module that shares another's weights is a view of it.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import psycopg2
import rich.progress
from psycopg2.extensions import connection as Connection
from rich.console import Console

from dbt_nn import database
from dbt_nn.binary_copy import DTYPES, MAX_HALF, stored_dtypes
from dbt_nn.checkpoint.files import CheckpointError, quoted
from dbt_nn.checkpoint.folder import Checkpoint, Progress, open_checkpoint
from dbt_nn.checkpoint.tensors import DTYPE_BYTES
from dbt_nn.cli import command
from dbt_nn.command_line import PROJECT
from dbt_nn.hub import fetch
from dbt_nn.writer import (
    BUILDING,
    FORMAT,
    check_schema,
    check_server,
    digest,
    load,
    loaded_checkpoints,
    refusal,
)

# The networks that come with dbt_nn, by the schemas that its vars name; and one that
# is fetched.
BUNDLED = {
    "gpt2_twin": str(PROJECT / "checkpoints" / "gpt2-twin"),
    "ddpm_twin": str(PROJECT / "checkpoints" / "ddpm-twin"),
}
ENCODER = ("minilm", "sentence-transformers/all-MiniLM-L6-v2")


def schema_name(source: str, name: str | None = None) -> str:
    """Choose the schema: `name`, or the last part of `source` made safe.

    Raises:
        CheckpointError: not lower case letters, digits and `_`, or reserved.

    """
    if name is None:
        try:
            last = Path(source).expanduser().resolve().name
        except (OSError, ValueError, RuntimeError):
            last = ""
        name = re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")
        origin = f"The name that follows from {quoted(source)}, {quoted(name)},"
    else:
        origin = f"The name {quoted(name)}"
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,49}", name):
        raise CheckpointError(
            f"{origin} is not a safe name for a schema. Give --name with up to 50 "
            "lower case letters, digits and _, no digit first."
        )
    if name.startswith(("pg_", BUILDING)) or name in ("public", "information_schema"):
        raise CheckpointError(
            f"{origin} belongs to the server or to others. Give another --name."
        )
    return name


def _bar(label: str, bars: ExitStack) -> Callable[[int], Progress]:
    """Make a progress bar over bytes, shown on a terminal only, closed by `bars`."""

    def start(total: int) -> Progress:
        bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(None),
            rich.progress.DownloadColumn(binary_units=True),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        task = bar.add_task(label, total=total)
        shown = bar.console.is_terminal and total
        if shown:
            bar.start()
            bars.callback(bar.stop)

        def step(count: int) -> None:
            bar.update(task, advance=count)
            # to stop one that was not started prints a line break
            if shown and bar.finished:
                bar.stop()

        return step

    return start


def _printable(value: object) -> str:
    """Show a stored name without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _works_on(checkpoint: Checkpoint) -> str:
    """Say what a network reads and writes."""
    if checkpoint.scheduler is not None:
        config = checkpoint.family.config_type.read(checkpoint.config)
        height, width = config.sample_size
        channels = config.in_channels
        return (
            f"images of {height} x {width} pixels and {channels} channel(s), "
            f"{checkpoint.scheduler['num_train_timesteps']:,} timesteps of a "
            f"{checkpoint.scheduler['_class_name']}"
        )
    if checkpoint.tokenizer is not None:
        return f"{len(checkpoint.tokenizer.vocabulary):,} tokens"
    return "no tokenizer: give token ids as prompts"


def _about_halves(checkpoint: Checkpoint, dtype: str | None) -> Iterator[str]:
    """Say what is stored in float16 though nobody asked for it, and what is not."""
    if dtype is not None:
        return
    stored = stored_dtypes(checkpoint, None)
    if "float16" in stored:
        yield (
            "Its weights are stored in float16, as its file has 16 bits: --dtype "
            "float32 for more digits, in twice the memory."
        )
    for name in stored.get("float32", []) if "float16" in stored else []:
        if DTYPE_BYTES[checkpoint.tensors[name].dtype] == 2:
            yield (
                f"{name} is stored in float32: it has an element of size "
                f"{checkpoint.largest[name]:g}, and float16 holds {MAX_HALF:,.0f}."
            )


def _print_list(connection: Connection) -> None:
    with connection, connection.cursor() as cursor:
        found = loaded_checkpoints(cursor)
    if not found:
        print("No checkpoint is loaded.")
        return
    rows = [("name", "family", "parameters", "source")]
    for name, about in found.items():
        parameters = about.get("parameters")
        rows.append(
            (
                name,
                str(about.get("family", "?")),
                f"{parameters:,}" if isinstance(parameters, int) else "?",
                _printable(about.get("source", "?"))
                + (
                    f" @ {_printable(about['revision'])}"
                    if about.get("revision")
                    else ""
                ),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, family, parameters, source in rows:
        print(
            f"{name:<{widths[0]}}  {family:<{widths[1]}}  "
            f"{parameters:>{widths[2]}}  {source}"
        )


def load_checkpoint(
    source: str,
    name: str | None = None,
    *,
    revision: str | None = None,
    target: str | None = None,
    dtype: str | None = None,
    no_tokenizer: bool = False,
    if_changed: bool = False,
    drop_dependents: bool = False,
) -> None:
    """Check a checkpoint and write it into the database; say what was loaded.

    Args:
        source: a folder, or a name on the Hub.
        name: of its schema (default: from the source's last part).
        revision: branch, tag or commit on the Hub.
        target: of profiles.yml (default: the one dbt uses).
        dtype: of the linear modules' weights, one of DTYPES; by default float32, or
            float16 where stored_dtype() says so.
        no_tokenizer: leave the tokenizer out.
        if_changed: do nothing if the same is loaded under that name.
        drop_dependents: also drop what others built on the one it replaces.

    Raises:
        CheckpointError: the checkpoint or the server is in the way.
        DatabaseError: there is no connection.

    """
    name = schema_name(source, name)
    if name == database.settings(target)["schema"]:
        raise CheckpointError(
            f"The schema {name} is the one where dbt builds its models. Give another "
            "--name."
        )
    with (
        ExitStack() as bars,
        contextlib.closing(database.connect(target)) as connection,
    ):
        # before a download of gigabytes
        loaded = loaded_digest(connection, name)
        folder = fetch(source, revision)
        started = time.monotonic()
        with open_checkpoint(
            folder, tokenizer=not no_tokenizer, progress=_bar("checking", bars)
        ) as checkpoint:
            if if_changed and loaded == digest(checkpoint, dtype):
                print(f"{name} is loaded and unchanged.")
                return
            load(
                connection,
                checkpoint,
                name,
                source=source,
                revision=revision,
                dtype=dtype,
                drop_dependents=drop_dependents,
                progress=_bar("loading", bars),
            )
            print(
                f"Loaded {name}: {checkpoint.family.kind}, "
                f"{checkpoint.parameters:,} parameters, {_works_on(checkpoint)}; "
                f"{time.monotonic() - started:.1f} s."
            )
            for line in _about_halves(checkpoint, dtype):
                print(line)


def loaded_digest(connection: Connection, name: str) -> str | None:
    """Check the server and the schema; return the digest of what is loaded there.

    That is None where it is to be loaded again: nothing, or of another format.

    Raises:
        CheckpointError: the server will not do, or the schema is not a checkpoint's.

    """
    try:
        with connection, connection.cursor() as cursor:
            check_server(connection)
            if not check_schema(cursor, name):
                return None
            about = loaded_checkpoints(cursor).get(name, {})
            return about.get("digest") if about.get("format") == FORMAT else None
    except psycopg2.Error as error:
        raise CheckpointError(refusal(error, name)) from None


def load_bundled(target: str | None) -> None:
    """Load the networks that come with dbt_nn if they are not loaded yet.

    That its encoder can't be fetched is no failure: the others do without.
    """
    for name, folder in BUNDLED.items():
        load_checkpoint(folder, name, target=target, if_changed=True)
    name, source = ENCODER
    try:
        load_checkpoint(source, name, target=target, if_changed=True)
    except CheckpointError as error:
        print(
            f"{name} is not loaded, and its models can't run: {error}", file=sys.stderr
        )


def print_loaded(target: str | None) -> None:
    """List the checkpoints in a target's database."""
    with contextlib.closing(database.connect(target)) as connection:
        _print_list(connection)


target_option = click.option(
    "--target",
    metavar="NAME",
    help="The target of profiles.yml (default: the one dbt uses).",
)


@command(__doc__)
@click.argument("source", required=False)
@click.option(
    "--name", help="The checkpoint's schema (default: from SOURCE's last part)."
)
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@target_option
@click.option(
    "--dtype",
    type=click.Choice([*DTYPES]),
    help="Of the weights of linear layers and convolutions (default: float32, or "
    "float16 where the file of a network of the Llama family has 16 bits); float16 "
    "takes half the memory, and these layers round their inputs to it too.",
)
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer out.")
@click.option(
    "--if-changed",
    is_flag=True,
    help="Do nothing if the same checkpoint is loaded under that name.",
)
@click.option(
    "--drop-dependents",
    is_flag=True,
    help="Also drop what others built on the checkpoint that is replaced.",
)
@click.option(
    "--list", "listed", is_flag=True, help="List the checkpoints that are loaded."
)
def main(
    source: str | None, name: str | None, target: str | None, listed: bool, **options
) -> None:
    """Carry out the command line."""
    if listed:
        if source is not None:
            raise click.UsageError("give either SOURCE or --list")
        print_loaded(target)
    elif source is not None:
        load_checkpoint(source, name, target=target, **options)
    elif name is not None or options["revision"] is not None:
        raise click.UsageError("give SOURCE, a folder or a name on the Hub")
    else:
        load_bundled(target)


@command(
    """List the checkpoints that are loaded: name, family, parameters and source.

    dbt-nn list"""
)
@target_option
def list_checkpoints(target: str | None) -> None:
    """List what is loaded."""
    print_loaded(target)
