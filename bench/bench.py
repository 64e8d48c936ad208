"""Time the networks here beside the libraries that one would use, in one run.

    make bench
    python scripts/bench.py decode unet      # some of it only

makes checkpoints of the published shapes with seeded random weights (MiniLM's are
the published ones), loads them beside the others, and times a step of ours and one of
theirs in turn (float32, all cores). Prints medians and ratios as a table, and writes
them with the machine's description to target/bench.json. Needs the packages of
requirements-test.lock.

    load     GPT-2 124M: the loader beside a raw binary COPY of the same tables
    decode   GPT-2 124M: a token at contexts of 16, 256 and 1,000; and how time,
             tables and memory grow
    half     the same tokens with half-precision weights
    batch    GPT-2 124M: a step of 16 sequences at a context of 16
    prefill  GPT-2 124M: a prompt of 256 tokens
    fixed    dbt run of the bundled GPT-2 beside as many empty tables
    unet     the UNet of ddpm-butterflies-64: a step of 1 image and of 4
    encoder  all-MiniLM-L6-v2: 1,000 texts; and two sessions at once
    scale    GPT-2 of other sizes: the time of a token by the number of weights
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import torch

from bench.common import SCHEMA, SMOKE, TEXT, Bench, Connection, Row, Sizes, drop, load
from bench.encoder import encoder
from bench.image import unet
from bench.runs import fixed, loading, scale
from bench.text import batch, decode, half, prefill, text_network
from dbt_nn.cli import command
from dbt_nn.database import PROJECT, connect

PARTS = (
    "load",
    "decode",
    "half",
    "batch",
    "prefill",
    "fixed",
    "unet",
    "encoder",
    "scale",
)


def measure(bench: Bench, parts: set[str]) -> Iterator[Row]:
    """Run the parts; the rows as they come."""
    if parts - {"fixed", "unet", "encoder"}:
        folder = bench.folder / "text"
        network = text_network(folder, **bench.sizes.text)
        load(folder, TEXT)
        if "load" in parts:
            yield from loading(bench, folder)
        if "decode" in parts:
            yield from decode(bench, network)
        if "half" in parts:
            yield from half(bench, network, folder)
        if "batch" in parts:
            yield from batch(bench, network)
        if "prefill" in parts:
            yield from prefill(bench, network)
    if "fixed" in parts:
        yield from fixed(bench)
    if "unet" in parts:
        yield from unet(bench)
    if "encoder" in parts:
        yield from encoder(bench)
    if "scale" in parts:  # last: it fills the server's cache
        yield from scale(bench, network)


def machine(connection: Connection) -> dict[str, object]:
    """What the figures depend on."""
    cursor = connection.cursor()
    cursor.execute("select version(), current_setting('shared_buffers')")
    version, shared_buffers = cursor.fetchone()
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / (1 << 30), 1),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "postgres": version,
        "shared_buffers": shared_buffers,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "commit": commit.stdout.strip(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cells(row: Row) -> list[str]:
    """A row of the table."""

    def figure(value: float) -> str:
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
        return f"{value:,.{digits}f}"

    asked = f"{'at least ' if row.at_least else ''}{row.asked:.3g}"
    figures = [f"{figure(value)} {row.unit}" for value in (row.ours, row.theirs)]
    return [row.what, row.beside, *figures, f"{row.ratio:.2f}", asked]


def clean(connection: Connection) -> None:
    """Drop what a run has made, or one that was killed."""
    cursor = connection.cursor()
    cursor.execute(
        "select nspname from pg_namespace where starts_with(nspname, %s)", (SCHEMA,)
    )
    drop(connection, *(name for (name,) in cursor.fetchall()))


@contextlib.contextmanager
def prepared(sizes: Sizes) -> Iterator[Bench]:
    """A bench whose schemas and folder are gone when it ends, whatever happens."""
    os.environ["DBT_NN_SCHEMA"] = SCHEMA
    # of transformers and diffusers, about their own future versions
    warnings.simplefilter("ignore", FutureWarning)
    with contextlib.closing(connect(autocommit=True)) as connection:
        clean(connection)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="dbt_nn-bench-") as folder,
                torch.inference_mode(),
            ):
                yield Bench(connection, Path(folder), sizes)
        finally:
            # a statement may still run on the other connection after Ctrl-C
            connection.cancel()
            with contextlib.closing(connect(autocommit=True)) as other:
                clean(other)


@command(__doc__)
@click.argument("parts", nargs=-1, type=click.Choice(PARTS), metavar="[PART]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=PROJECT / "target" / "bench.json",
    help="Where the figures go (default: target/bench.json).",
)
@click.option("--smoke", is_flag=True, hidden=True)
def main(parts: tuple[str, ...], out: Path, smoke: bool) -> int:
    """Carry out the command line."""
    rows = []
    started = time.monotonic()
    with prepared(SMOKE if smoke else Sizes()) as bench:
        description = machine(bench.connection)
        for row in measure(bench, set(parts or PARTS)):
            print(" | ".join(cells(row)), file=sys.stderr, flush=True)
            rows.append(row)
    minutes = (time.monotonic() - started) / 60
    print("\nPublished shapes, random weights but MiniLM's; medians.\n")
    print("| what | beside | dbt_nn | beside it | ratio | asked for |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {' | '.join(cells(row))} |")
    report = {
        "machine": {**description, "minutes": round(minutes, 1)},
        "results": [dataclasses.asdict(row) for row in rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{json.dumps(report['machine'])}\nwritten to {out}")
    return 0
