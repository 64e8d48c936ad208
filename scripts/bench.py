"""Time a token of GPT-2 124M here beside transformers, in one run.

    make bench

makes a checkpoint of the full configuration with seeded random weights, loads it
beside the others, lets dbt read a prompt, and then times decode steps: one of
ours, one of transformers' (float32, KV cache, all cores), in turn. Prints medians
and ratios, and writes them with the machine's description to target/bench.json.
Needs the packages of requirements-test.lock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg2
import torch
from psycopg2 import sql
from transformers import GPT2Config, GPT2LMHeadModel

from complete import dbt
from database import PROJECT, connect, run_command

SCHEMA = "dbt_nn_bench"  # of the models and, with a suffix, of the checkpoint
CHECKPOINT = f"{SCHEMA}_checkpoint"


def load_random_checkpoint() -> GPT2LMHeadModel:
    """GPT-2 124M with seeded random weights, in transformers and in the database."""
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config()).eval()
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        script = PROJECT / "scripts" / "load_checkpoint.py"
        subprocess.run(
            [sys.executable, str(script), folder, "--name", CHECKPOINT], check=True
        )
    return network


def read_prompt(
    connection: psycopg2.extensions.connection, token_ids: list[int]
) -> None:
    """Let dbt read a prompt, with the options set so that decoding can go on."""
    cursor = connection.cursor()
    cursor.execute(f"create schema if not exists {SCHEMA}")
    cursor.execute(f"drop table if exists {SCHEMA}.bench_prompts")
    cursor.execute(
        f"create table {SCHEMA}.bench_prompts as "
        "select 1 as prompt_id, %s::integer[] as prompt_token_ids",
        (token_ids,),
    )
    variables = {
        "gpt2_prompts": f"{SCHEMA}.bench_prompts",
        "gpt2_checkpoint": CHECKPOINT,
        "gpt2_options": {"max_new_tokens": 1},
    }
    if dbt("run", "--select", "gpt2", "--vars", json.dumps(variables)):
        sys.exit("error: dbt run failed")
    cursor.execute(f"update {SCHEMA}.gpt2_prompts set max_new_tokens = 1000")
    cursor.execute(f"update {SCHEMA}.gpt2_completion_tokens set finish_reason = null")


def compare(
    connection: psycopg2.extensions.connection,
    network: GPT2LMHeadModel,
    context: int,
    steps: int,
) -> dict:
    """Seconds a token of both, step by step in turn, from `context` tokens on."""
    generator = torch.Generator().manual_seed(context)
    token_ids = torch.randint(50257, (1, context), generator=generator)
    read_prompt(connection, token_ids[0].tolist())
    cursor = connection.cursor()
    step = sql.SQL("select {}()").format(
        sql.Identifier(SCHEMA, "gpt2_completion_tokens_step")
    )
    ours, theirs = [], []
    with torch.inference_mode():
        output = network(token_ids, use_cache=True)
        for _ in range(steps + 2):
            started = time.perf_counter()
            cursor.execute(step)
            ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            output = network(
                output.logits[:, -1:].argmax(-1),
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            theirs.append(time.perf_counter() - started)
    ours, theirs = ours[2:], theirs[2:]  # the first plan statements, warm caches
    return {
        "context": context,
        "steps": steps,
        "ours_ms": statistics.median(ours) * 1000,
        "transformers_ms": statistics.median(theirs) * 1000,
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def machine(connection: psycopg2.extensions.connection) -> dict:
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
        "postgres": version,
        "shared_buffers": shared_buffers,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[16, 256, 980], metavar="N"
    )
    parser.add_argument("--steps", type=int, default=20, help="timed, per context")
    arguments = parser.parse_args()
    os.environ["DBT_NN_SCHEMA"] = SCHEMA
    connection = connect(autocommit=True)
    try:
        network = load_random_checkpoint()
        results = [
            compare(connection, network, context, arguments.steps)
            for context in arguments.contexts
        ]
    finally:
        for name in (SCHEMA, f"{SCHEMA}_gpt2", CHECKPOINT):
            connection.cursor().execute(f"drop schema if exists {name} cascade")
    print("\nGPT-2 124M, float32, one sequence: milliseconds a token (medians)\n")
    print("| context | dbt_nn | transformers | ratio |\n| ---: | ---: | ---: | ---: |")
    for row in results:
        print(
            f"| {row['context']} | {row['ours_ms']:.0f} "
            f"| {row['transformers_ms']:.1f} | {row['ratio']:.1f} |"
        )
    report = {"machine": machine(connection), "decode": results}
    path = PROJECT / "target" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{json.dumps(report['machine'])}\nwritten to {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
