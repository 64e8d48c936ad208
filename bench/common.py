"""What the parts of scripts/bench.py share: sizes, schemas, timing, rows."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import torch
from psycopg2 import sql

from dbt_nn.database import PROJECT, DatabaseError
from dbt_nn.runner import dbt

# Of the models and, with a suffix, of the checkpoints.
SCHEMA = "dbt_nn_bench"
TEXT = f"{SCHEMA}_gpt2_124m"
HALF = f"{SCHEMA}_gpt2_124m_half"
IMAGE = f"{SCHEMA}_butterflies"
Connection = psycopg2.extensions.connection


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are those of the published table.

    Attributes:
        text: of GPT2Config, whose defaults are GPT-2 124M's.
        image: of UNet2DModel; the defaults are ddpm-butterflies-64's.
        contexts: of the sequence that is decoded; the last two show growth.
        batch: sequences at once, at the first context.
        prefill: tokens of the prompt.
        images: batches of a UNet step.
        steps: timed steps of a token; of slower ones fewer.
        repetitions: of loads and of dbt runs.
        new_tokens: of the bundled network's dbt run.
        scale: other sizes of GPT-2, beside `text`.
        texts: that are embedded.
        encoder: of BertConfig; by default the published all-MiniLM-L6-v2 is taken.

    """

    text: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(
        default_factory=lambda: {
            "sample_size": 64,
            "block_out_channels": (64, 128, 256, 512),
        }
    )
    contexts: tuple[int, ...] = (16, 256, 1000)
    batch: int = 16
    prefill: int = 256
    images: tuple[int, ...] = (1, 4)
    steps: int = 16
    repetitions: int = 3
    new_tokens: int = 32
    scale: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            "twin": {
                "n_embd": 128,
                "n_layer": 12,
                "n_head": 4,
                "n_positions": 256,
                "vocab_size": 2048,
            },
            "355m": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
            "774m": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
        }
    )
    texts: int = 1000
    encoder: dict[str, int] = field(default_factory=dict)


# For the test that every part still runs: its figures mean nothing.
SMOKE = Sizes(
    text={"n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 64},
    image={
        "sample_size": 16,
        "block_out_channels": (8, 16, 24, 32),
        "norm_num_groups": 4,
    },
    contexts=(4, 8),
    batch=2,
    prefill=8,
    images=(1,),
    steps=1,
    repetitions=1,
    new_tokens=1,
    scale={"tiny": {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 64}},
    texts=8,
    encoder={
        "hidden_size": 12,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 20,
    },
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what, beside: what was measured, and with what it is compared.
        unit: of both figures.
        ours, theirs: medians.
        ratio: the median of the pairs' ratios.
        asked: what the ratio should be at most, or at least if `at_least`.

    """

    what: str
    beside: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    asked: float
    at_least: bool = False


@dataclass(frozen=True)
class Bench:
    """What a part needs: a connection of autocommit, and a folder that passes."""

    connection: Connection
    folder: Path
    sizes: Sizes

    def run_dbt(
        self,
        select: str,
        project: Path = PROJECT,
        schema: str = SCHEMA,
        **variables: Any,
    ) -> Path:
        """Run models in a target folder apart, so that the user's stays parsed.

        Returns the target folder.
        """
        target = self.folder / f"target_{project.name}_{schema}"
        arguments = ["run", "--select", select, "--full-refresh"]
        arguments += ["--target-path", str(target)]
        os.environ["DBT_NN_SCHEMA"] = schema
        try:
            if dbt(*arguments, variables=variables, project=project):
                raise DatabaseError(f"dbt run --select {select} failed")
        finally:
            os.environ["DBT_NN_SCHEMA"] = SCHEMA
        return target


def say(text: str) -> None:
    """Show what is going on."""
    print(text, file=sys.stderr, flush=True)


def load(folder: Path, name: str, *options: str) -> None:
    """Load a checkpoint as a user does."""
    script = PROJECT / "scripts" / "load_checkpoint.py"
    command = [sys.executable, str(script), str(folder), "--name", name, *options]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise DatabaseError("load_checkpoint.py failed")


def drop(connection: Connection, *schemas: str) -> None:
    for name in schemas:
        statement = sql.SQL("drop schema if exists {} cascade")
        connection.cursor().execute(statement.format(sql.Identifier(name)))


def in_turn(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    steps: int,
    warm: int = 0,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Seconds of both, in turn: medians, and the median of the ratios.

    Args:
        ours: what to time.
        theirs: what to time beside it.
        steps: timed pairs.
        warm: pairs before them: the first plan statements and fill caches.
        before: called before each, untimed.

    """
    pairs = []
    for _ in range(warm + steps):
        times = []
        for step in (ours, theirs):
            before()
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        pairs.append(times)
    pairs = pairs[warm:]
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def timed(
    what: str, beside: str, asked: float, times: dict[str, float], unit: str = "ms"
) -> Row:
    """Make a row of what in_turn() returned."""
    scale = {"ms": 1000, "s": 1}[unit]
    ours, theirs = times["ours"] * scale, times["theirs"] * scale
    return Row(what, beside, unit, ours, theirs, times["ratio"], asked)


def step_of(connection: Connection, model: str) -> Callable[[], None]:
    """One step of a network's loop, as the generation materialization makes it."""
    statement = sql.SQL("select {}()").format(sql.Identifier(SCHEMA, f"{model}_step"))
    return lambda: connection.cursor().execute(statement)


def read_prompts(
    bench: Bench,
    token_ids: torch.Tensor,
    checkpoint: str,
    network: str = "gpt2",
    project: Path = PROJECT,
    **others: str,
) -> None:
    """Let dbt read prompts, and the loop go on after its first token."""
    cursor = bench.connection.cursor()
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
    variables = {
        "prompts": f"{SCHEMA}.bench_prompts",
        "checkpoint": checkpoint,
        "options": {"max_new_tokens": 1},
    }
    named = {f"{network}_{name}": value for name, value in variables.items()}
    bench.run_dbt(network, project, **named, **others)
    # the run has met its limit of one token: raise it, and forget that
    cursor.execute(
        f"update {SCHEMA}.{network}_prompts "
        "set max_new_tokens = 1000, finished_at = null"
    )
    cursor.execute(
        f"update {SCHEMA}.{network}_completion_tokens set finish_reason = null"
    )


def random_tokens(sequences: int, length: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(vocabulary, (sequences, length), generator=generator)


def flush_disk() -> None:
    """Let no write of before be in the way."""
    os.sync()
