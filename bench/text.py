"""The parts of scripts/bench.py that time GPT-2 beside transformers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from psycopg2 import sql
from transformers import GPT2Config, GPT2LMHeadModel

from bench.common import (
    HALF,
    SCHEMA,
    TEXT,
    Bench,
    Connection,
    Row,
    in_turn,
    load,
    random_tokens,
    read_prompts,
    say,
    step_of,
    timed,
)

BESIDE = "transformers"
SAMPLE_S = 0.005  # of memory
MIB = 1 << 20


def text_network(folder: Path, **config: int) -> GPT2LMHeadModel:
    """A GPT-2 with seeded random weights, saved."""
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(**config)).eval()
    network.save_pretrained(folder)
    return network


def decode_times(
    bench: Bench,
    network: GPT2LMHeadModel,
    checkpoint: str,
    token_ids: torch.Tensor,
    steps: int,
) -> dict[str, float]:
    """A token of each sequence after the prompts, with both KV caches."""
    read_prompts(bench, token_ids, checkpoint)
    output = network(token_ids, use_cache=True)

    def theirs() -> None:
        nonlocal output
        output = network(
            output.logits[:, -1:].argmax(-1),
            past_key_values=output.past_key_values,
            use_cache=True,
        )

    ours = step_of(bench.connection, "gpt2_completion_tokens")
    return in_turn(ours, theirs, steps, warm=2)


def decode(bench: Bench, network: GPT2LMHeadModel) -> Iterator[Row]:
    """One sequence, at several contexts; and what grows with it."""
    ours, tables, memory = {}, {}, {}
    for context in bench.sizes.contexts:
        say(f"decode: context of {context:,} tokens")
        token_ids = random_tokens(1, context, network.config.vocab_size)
        times = decode_times(bench, network, TEXT, token_ids, bench.sizes.steps)
        what = f"decode, one sequence, context {context:,}"
        yield timed(what, BESIDE, 5, times)
        ours[context] = times["ours"] * 1000
        tokens = bench.sizes.steps + context
        tables[context] = layers_bytes(bench.connection) / tokens / MIB
        memory[context] = step_memory(bench.connection) / MIB
    first, (middle, last) = bench.sizes.contexts[0], bench.sizes.contexts[-2:]
    for what, unit, figures, low, asked in (
        ("a token", "ms", ours, first, 2),
        # linear, if a token takes no more room than it did
        ("tables, a token's part", "MiB", tables, middle, 1.1),
        ("memory of a step, shared buffers apart", "MiB", memory, first, last / first),
    ):
        figure, base = figures[last], figures[low]
        what = f"growth: {what}, context {last:,}"
        yield Row(what, f"context {low:,}", unit, figure, base, figure / base, asked)


def layers_bytes(connection: Connection) -> int:
    cursor = connection.cursor()
    cursor.execute(
        "select sum(pg_total_relation_size(oid)) from pg_class "
        "where relkind = 'r' and relnamespace = %s::regnamespace",
        (f"{SCHEMA}_gpt2",),
    )
    return int(cursor.fetchone()[0])


def step_memory(connection: Connection) -> int:
    """The most bytes of its own that the server process has during a step.

    Where its process is not here to be looked at, what it still has after one.
    """
    step = step_of(connection, "gpt2_completion_tokens")
    statm = Path(f"/proc/{connection.info.backend_pid}/statm")
    if not statm.exists():
        step()
        cursor = connection.cursor()
        cursor.execute("select sum(total_bytes) from pg_backend_memory_contexts")
        return int(cursor.fetchone()[0])
    with highest(lambda: own_memory(statm)) as found:
        step()
    return found[0]


def own_memory(statm: Path) -> int:
    _, resident, shared, *_ = map(int, statm.read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def highest(figure: Callable[[], int]) -> Iterator[list[int]]:
    """Look at a figure until the block ends; the highest is in the list then."""
    found = [figure()]
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            found[0] = max(found[0], figure())
            time.sleep(SAMPLE_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def half(bench: Bench, network: GPT2LMHeadModel, folder: Path) -> Iterator[Row]:
    """The same with half-precision weights, beside float32."""
    load(folder, HALF, "--dtype", "float16")
    for context in bench.sizes.contexts:
        say(f"half: context of {context:,} tokens")
        token_ids = random_tokens(1, context, network.config.vocab_size)
        times = decode_times(bench, network, HALF, token_ids, bench.sizes.steps)
        yield timed(f"decode, fp16 weights, context {context:,}", BESIDE, 3, times)


def batch(bench: Bench, network: GPT2LMHeadModel) -> Iterator[Row]:
    """Many sequences at once, beside theirs and beside our one."""
    many, context = bench.sizes.batch, bench.sizes.contexts[0]
    steps = max(bench.sizes.steps // 3, 1)
    throughput = {}
    for sequences in (1, many):
        say(f"batch: {sequences} x {context:,} tokens")
        token_ids = random_tokens(sequences, context, network.config.vocab_size)
        times = decode_times(bench, network, TEXT, token_ids, steps)
        throughput[sequences] = sequences / times["ours"]
    what = f"decode, {many} sequences, context {context:,}"
    yield timed(what, BESIDE, 10, times)
    yield Row(
        what,
        "one sequence, here",
        "tokens/s",
        throughput[many],
        throughput[1],
        throughput[many] / throughput[1],
        5,
        at_least=True,
    )


def layer_calls(connection: Connection, model: str) -> list[sql.Composable]:
    """Calls of the layers' functions on the whole prompt, in a step's order."""
    cursor = connection.cursor()
    cursor.execute(
        "select prosrc from pg_proc where pronamespace = %s::regnamespace "
        "and proname = %s",
        (SCHEMA, f"{model}_step"),
    )
    lines = [line.strip() for line in cursor.fetchone()[0].splitlines()]
    return [
        sql.SQL(
            "select " + line.removeprefix("perform ").replace("(anew, held)", "(true)")
        )
        for line in lines
        if line.endswith('_forward"(anew, held);') and f"{model}_forward" not in line
    ]


def prefill(bench: Bench, network: GPT2LMHeadModel) -> Iterator[Row]:
    """A whole prompt through every layer, in a transaction as a batch begins."""
    length = bench.sizes.prefill
    say(f"prefill: {length:,} tokens")
    token_ids = random_tokens(1, length, network.config.vocab_size)
    read_prompts(bench, token_ids, TEXT)
    cursor = bench.connection.cursor()
    calls = layer_calls(bench.connection, "gpt2_completion_tokens")

    def ours() -> None:
        cursor.execute("begin")
        for call in calls:
            cursor.execute(call)
        cursor.execute("commit")

    def theirs() -> None:
        network(token_ids, use_cache=True)

    times = in_turn(ours, theirs, max(bench.sizes.steps // 4, 1), warm=1)
    yield timed(f"prefill, {length:,} tokens", BESIDE, 15, times)
