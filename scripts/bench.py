"""Time the networks here beside transformers and diffusers, in one run.

    make bench
    python scripts/bench.py decode unet      # some of it only

makes checkpoints of the published shapes with seeded random weights, loads them
beside the others, and times a step of ours and one of theirs in turn (float32,
all cores). Prints medians and ratios as tables, and writes them with the machine's
description to target/bench.json. Needs the packages of requirements-test.lock.

    decode   GPT-2 124M: a token at contexts of 16, 256 and 980
    batch    GPT-2 124M: a step of 16 sequences at a context of 16
    prefill  GPT-2 124M: a prompt of 256 tokens
    load     GPT-2 124M: the loader beside a raw binary COPY of the same tables
    unet     the UNet of ddpm-butterflies-64: a step of 1 image and of 4
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from psycopg2 import sql
from transformers import GPT2Config, GPT2LMHeadModel

from database import PROJECT, connect, run_command
from runner import dbt

SCHEMA = "dbt_nn_bench"  # of the models and, with a suffix, of the checkpoints
TEXT = f"{SCHEMA}_gpt2_124m"
IMAGE = f"{SCHEMA}_butterflies"
Connection = psycopg2.extensions.connection


def load(folder: str, name: str) -> float:
    """Load a checkpoint; the seconds that it took."""
    script = PROJECT / "scripts" / "load_checkpoint.py"
    started = time.perf_counter()
    subprocess.run([sys.executable, str(script), folder, "--name", name], check=True)
    return time.perf_counter() - started


def text_network(folder: str) -> GPT2LMHeadModel:
    """GPT-2 124M with seeded random weights, saved."""
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config()).eval()
    network.save_pretrained(folder)
    return network


def image_network(folder: str) -> UNet2DModel:
    """The UNet of gnokit/ddpm-butterflies-64 with seeded random weights, saved."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=64,
        block_out_channels=(64, 128, 256, 512),
        down_block_types=(
            "DownBlock2D",
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        up_block_types=(
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "UpBlock2D",
            "UpBlock2D",
        ),
    ).eval()
    DDIMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained(folder)
    return network


def run_dbt(select: str, **variables: object) -> None:
    options = ["--full-refresh", "--vars", json.dumps(variables)]
    if dbt("run", "--select", select, *options):
        sys.exit("error: dbt run failed")


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], steps: int, warm: int = 2
) -> dict:
    """Milliseconds of both, step by step in turn: medians, and their ratio's."""
    pairs = []
    for _ in range(warm + steps):
        times = []
        for step in (ours, theirs):
            started = time.perf_counter()
            step()
            times.append((time.perf_counter() - started) * 1000)
        pairs.append(times)
    pairs = pairs[warm:]  # the first plan statements and warm caches
    return {
        "steps": steps,
        "ours_ms": statistics.median(a for a, _ in pairs),
        "theirs_ms": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def step_of(connection: Connection, model: str) -> Callable[[], None]:
    """One step of a network's loop, as the generation materialization makes it."""
    statement = sql.SQL("select {}()").format(sql.Identifier(SCHEMA, f"{model}_step"))
    return lambda: connection.cursor().execute(statement)


def read_prompts(connection: Connection, token_ids: torch.Tensor) -> None:
    """Let dbt read prompts, with the options set so that decoding can go on."""
    cursor = connection.cursor()
    cursor.execute(f"create schema if not exists {SCHEMA}")
    cursor.execute(f"drop table if exists {SCHEMA}.bench_prompts")
    cursor.execute(
        f"create table {SCHEMA}.bench_prompts "
        "(prompt_id integer, prompt_token_ids integer[])"
    )
    for prompt_id, row in enumerate(token_ids.tolist()):
        cursor.execute(
            f"insert into {SCHEMA}.bench_prompts values (%s, %s)", (prompt_id, row)
        )
    run_dbt(
        "gpt2",
        gpt2_prompts=f"{SCHEMA}.bench_prompts",
        gpt2_checkpoint=TEXT,
        gpt2_options={"max_new_tokens": 1},
    )
    cursor.execute(f"update {SCHEMA}.gpt2_prompts set max_new_tokens = 1000")
    cursor.execute(f"update {SCHEMA}.gpt2_completion_tokens set finish_reason = null")


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(50257, (sequences, length), generator=generator)


def decode(
    connection: Connection,
    network: GPT2LMHeadModel,
    sequences: int,
    context: int,
    steps: int,
) -> dict:
    """A token of each sequence, from `context` tokens on, with both KV caches."""
    token_ids = random_tokens(sequences, context)
    read_prompts(connection, token_ids)
    output = network(token_ids, use_cache=True)

    def theirs() -> None:
        nonlocal output
        output = network(
            output.logits[:, -1:].argmax(-1),
            past_key_values=output.past_key_values,
            use_cache=True,
        )

    ours = step_of(connection, "gpt2_completion_tokens")
    return {
        "what": f"decode, {sequences} x 1 token, context {context}",
        **in_turn(ours, theirs, steps),
    }


def layer_functions(connection: Connection, model: str) -> list[sql.Composable]:
    """The layers' functions in the order in which a step calls them."""
    cursor = connection.cursor()
    cursor.execute(
        "select prosrc from pg_proc where pronamespace = %s::regnamespace "
        "and proname = %s",
        (SCHEMA, f"{model}_step"),
    )
    lines = [line.strip() for line in cursor.fetchone()[0].splitlines()]
    return [
        sql.SQL("select " + line.removeprefix("perform ").replace("()", "(true)"))
        for line in lines
        if line.startswith("perform ") and f"_{model}" not in line
    ]


def prefill(
    connection: Connection, network: GPT2LMHeadModel, length: int, steps: int
) -> dict:
    """A whole prompt through every layer."""
    token_ids = random_tokens(1, length)
    read_prompts(connection, token_ids)
    cursor = connection.cursor()
    statements = [
        statement
        for statement in layer_functions(connection, "gpt2_completion_tokens")
        if "completion_tokens" not in statement.as_string(connection)
    ]
    cursor.execute(
        "select format('%%I.%%I', schemaname, tablename) from pg_tables "
        "where schemaname = %s",
        (f"{SCHEMA}_gpt2",),
    )
    tables = ", ".join(row[0] for row in cursor.fetchall())

    def ours() -> None:
        cursor.execute(f"truncate {tables}")
        for statement in statements:
            cursor.execute(statement)

    def theirs() -> None:
        network(token_ids, use_cache=True)

    return {"what": f"prefill, {length} tokens", **in_turn(ours, theirs, steps, 1)}


def loading(connection: Connection, seconds: float) -> dict:
    """The loader beside a binary COPY of the tables that it wrote."""
    cursor = connection.cursor()
    cursor.execute(
        "select format('%%I.%%I', schemaname, tablename) from pg_tables "
        "where schemaname = %s",
        (TEXT,),
    )
    tables = [row[0] for row in cursor.fetchall()]
    copies = {}
    for table in tables:
        copies[table] = io.BytesIO()
        cursor.copy_expert(f"copy {table} to stdout (format binary)", copies[table])
    cursor.execute(f"create schema {SCHEMA}_copy")
    started = time.perf_counter()
    for table, content in copies.items():
        content.seek(0)
        name = f"{SCHEMA}_copy.{table.partition('.')[2]}"
        # as the loader's: created and filled in one transaction
        cursor.execute("begin")
        cursor.execute(f"create table {name} (like {table} including all)")
        cursor.copy_expert(f"copy {name} from stdin (format binary)", content)
        cursor.execute("commit")
    copied = time.perf_counter() - started
    cursor.execute(f"drop schema {SCHEMA}_copy cascade")
    return {
        "what": "loading (theirs: COPY)",
        "steps": 1,
        "ours_ms": seconds * 1000,
        "theirs_ms": copied * 1000,
        "ratio": seconds / copied,
    }


def denoise(
    connection: Connection, network: UNet2DModel, images: int, steps: int
) -> dict:
    """A denoising step, UNet and DDIM."""
    run_dbt(
        "ddpm",
        ddpm_checkpoint=IMAGE,
        ddpm_options={"num_inference_steps": 1, "batch_size": images},
    )
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    sample = torch.randn(images, 3, 64, 64)

    def theirs() -> None:
        scheduler.step(network(sample, 0).sample, 0, sample)

    return {
        "what": f"UNet step, {images} image{'s' if images > 1 else ''}",
        **in_turn(step_of(connection, "ddpm_denoised"), theirs, steps, 1),
    }


def measure(connection: Connection, what: list[str], steps: int) -> list[dict]:
    results = []
    if {"decode", "batch", "prefill", "load"} & set(what):
        with tempfile.TemporaryDirectory() as folder:
            network = text_network(folder)
            seconds = load(folder, TEXT)
        if "load" in what:
            results.append(loading(connection, seconds))
        for context in (16, 256, 980) if "decode" in what else ():
            results.append(decode(connection, network, 1, context, steps))
        if "batch" in what:
            results.append(decode(connection, network, 16, 16, max(steps // 4, 1)))
        if "prefill" in what:
            results.append(prefill(connection, network, 256, max(steps // 7, 1)))
    if "unet" in what:
        with tempfile.TemporaryDirectory() as folder:
            unet = image_network(folder)
            load(folder, IMAGE)
        for images in (1, 4):
            few = max(steps // (4 * images), 1)
            results.append(denoise(connection, unet, images, few))
    return results


def machine(connection: Connection) -> dict:
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
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "postgres": version,
        "shared_buffers": shared_buffers,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["load", "decode", "batch", "prefill", "unet"]
    parser.add_argument("what", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--steps", type=int, default=20, help="timed, for a token")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.what if part not in parts]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(parts)}")
    os.environ["DBT_NN_SCHEMA"] = SCHEMA
    connection = connect(autocommit=True)
    description = machine(connection)
    try:
        with torch.inference_mode():
            results = measure(connection, arguments.what or parts, arguments.steps)
    finally:
        for name in (SCHEMA, f"{SCHEMA}_gpt2", f"{SCHEMA}_ddpm", TEXT, IMAGE):
            connection.cursor().execute(f"drop schema if exists {name} cascade")
    print("\nfloat32, published shapes, random weights: milliseconds (medians)\n")
    print("| what | dbt_nn | transformers, diffusers | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for row in results:
        print(
            f"| {row['what']} | {row['ours_ms']:,.0f} | {row['theirs_ms']:,.1f} "
            f"| {row['ratio']:.1f} |"
        )
    path = PROJECT / "target" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    report = {"machine": description, "results": results}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{json.dumps(description)}\nwritten to {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
