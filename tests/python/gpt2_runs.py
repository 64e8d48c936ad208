"""Runs of a GPT-2 in dbt, and what `transformers` makes of the same input.

The oracle reads the same checkpoint folder as the loader, so no expectation is
written down: it is what `transformers` computes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import numpy as np
import psycopg2
import pytest
import torch
from psycopg2 import sql
from psycopg2.extras import Json, RealDictCursor
from transformers import (
    AutoTokenizer,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import database
from conftest import Dbt, run_script

PROJECT = database.PROJECT
TWIN = PROJECT / "checkpoints" / "gpt2-twin"

# Of the largest |logit|: what float32 sums in another order may differ by.
LOGIT_TOLERANCE = 1e-4

COLUMN_TYPES = {
    "prompt_id": "integer",
    "prompt": "text",
    "prompt_token_ids": "integer[]",
    "max_new_tokens": "integer",
    "do_sample": "boolean",
    "temperature": "float8",
    "top_k": "integer",
    "top_p": "float8",
    "min_p": "float8",
    "repetition_penalty": "float8",
    "seed": "bigint",
    "prompt_logprobs": "boolean",
    "stop_strings": "jsonb",
}

# Beside a database and dbt, more threads wait for each other.
torch.set_num_threads(1)

Row = dict[str, Any]
State = dict[str, torch.Tensor]


def load_checkpoint(folder: Path, name: str, env: dict[str, str] | None = None) -> None:
    """Load a checkpoint as a user does."""
    done = run_script(
        "load_checkpoint.py",
        str(folder),
        "--name",
        name,
        "--if-changed",
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def copy_project(folder: Path) -> Path:
    """Copy what dbt and the generator need, so that a test may change it."""
    for name in ("macros", "seeds", "scripts", "models", "tests/generic"):
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(PROJECT / "dbt_project.yml", folder)
    return folder


# --- The side of dbt ----------------------------------------------------------


@dataclass
class Gpt2:
    """`dbt run --select <network>` with prompts from a table, in its own schema.

    The vars stay the same from run to run where they can: dbt then need not
    parse the project again.
    """

    dbt: Dbt
    connection: psycopg2.extensions.connection
    schema: str
    target: Path
    network: str = "gpt2"
    project: Path = PROJECT
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drop()
        self.execute(f"create schema {self.schema}")

    def drop(self) -> None:
        self.execute(f"drop schema if exists {self.schema} cascade")

    @property
    def environment(self) -> dict[str, str]:
        return {"DBT_NN_SCHEMA": self.schema, "DBT_TARGET_PATH": str(self.target)}

    def execute(self, statement: str, values: Any = None) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)

    def query(self, statement: str, values: Any = None) -> list[Row]:
        with self.connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(statement, values)
            return [dict(row) for row in cursor]

    def write_prompts(self, rows: Iterable[Row], table: str = "test_prompts") -> str:
        """Make the table, with the columns that the rows have."""
        rows = list(rows)
        columns = [name for name in COLUMN_TYPES if any(name in row for row in rows)]
        name = sql.Identifier(self.schema, table)
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("drop table if exists {}").format(name))
            cursor.execute(
                sql.SQL("create table {} ({})").format(
                    name,
                    sql.SQL(", ").join(
                        sql.SQL("{} {}").format(
                            sql.Identifier(column), sql.SQL(COLUMN_TYPES[column])
                        )
                        for column in columns
                    ),
                )
            )
            insert = sql.SQL("insert into {} values ({})").format(
                name, sql.SQL(", ").join([sql.Placeholder()] * len(columns))
            )
            for row in rows:
                values = {**row}
                if values.get("stop_strings") is not None:
                    values["stop_strings"] = Json(values["stop_strings"])
                cursor.execute(insert, [values.get(column) for column in columns])
        return f"{self.schema}.{table}"

    def arguments(self, **variables: Any) -> list[str]:
        given = {
            f"{self.network}_prompts": f"{self.schema}.test_prompts",
            **self.variables,
            **variables,
        }
        return ["--project-dir", str(self.project), "--vars", json.dumps(given)]

    def run(
        self, *flags: str, check: bool = True, **variables: Any
    ) -> CompletedProcess[str]:
        """Run the network on the prompts that are written."""
        return self.dbt(
            "run",
            *(flags if "--select" in flags else (*flags, "--select", self.network)),
            *self.arguments(**variables),
            env=self.environment,
            check=check,
        )

    def start(self, log: Path, *flags: str) -> Popen[bytes]:
        """Begin the same run and do not wait for it."""
        with log.open("wb") as output:
            return Popen(
                [sys.executable, "-m", "dbt.cli.main", "run", *flags, "--select"]
                + [self.network, *self.arguments()],
                cwd=PROJECT,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
            )

    def complete(
        self, rows: Iterable[Row], *flags: str, **variables: Any
    ) -> dict[int, Row]:
        """Write the prompts, run, and give their completions by prompt_id."""
        rows = list(rows)
        ids = {row["prompt_id"] for row in rows}
        self.write_prompts(rows)
        self.run(*flags, **variables)
        return {n: row for n, row in self.completions().items() if n in ids}

    def completions(self) -> dict[int, Row]:
        """The rows of <network>_completions, each with its `tokens`."""
        model = f"{self.schema}.{self.network}_completion"
        completions = {
            row["prompt_id"]: row | {"tokens": []}
            for row in self.query(f"select * from {model}s order by prompt_id")
        }
        for row in self.query(f"select * from {model}_tokens order by position"):
            row["token"] = bytes(row["token"])
            completions[row["prompt_id"]]["tokens"].append(row)
        for row in completions.values():
            row["token_ids"] = [token["token_id"] for token in row["tokens"]]
        return completions

    def prompt_token_ids(self) -> dict[int, list[int]]:
        """The tokens of each prompt, by prompt_id."""
        rows = self.query(
            "select prompt_id, prompt_token_ids "
            f"from {self.schema}.{self.network}_prompts"
        )
        return {row["prompt_id"]: row["prompt_token_ids"] for row in rows}

    def logits(self, prompt_id: int) -> torch.Tensor:
        """[positions, vocabulary], of the positions that lm_head holds."""
        rows = self.query(
            f"""
            select array_send(head.logits) as logits
            from {self.schema}_{self.network}.{self.network}_lm_head as head
            inner join {self.schema}.{self.network}_prompts as prompts
                using (sequence_id)
            where prompts.prompt_id = %s
            order by head.position
            """,
            [prompt_id],
        )
        # an array's binary form: 20 bytes, then a length and a value each
        element = np.dtype([("length", ">i4"), ("x", ">f4")])
        return torch.stack(
            [
                torch.from_numpy(
                    np.frombuffer(row["logits"], element, offset=20)["x"].astype("f4")
                )
                for row in rows
            ]
        )


# --- The side of transformers -------------------------------------------------


class Reference:
    """A checkpoint folder in `transformers`: float32, eager."""

    def __init__(self, folder: Path, tokenizer: bool = True):
        """Read the network, and the tokenizer if there is one."""
        self.model = GPT2LMHeadModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.config = self.model.config
        self.folder = folder
        self.has_tokenizer = tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    def encode(self, row: Row) -> list[int]:
        """The prompt's tokens; generate() reads an empty prompt as bos."""
        token_ids = row.get("prompt_token_ids")
        if token_ids is None:
            token_ids = self.tokenizer(row["prompt"])["input_ids"]
        return token_ids or [self.config.bos_token_id]

    def decode(self, token_ids: list[int]) -> str:
        """The text of the tokens, without end-of-text."""
        return self.tokenizer.decode(
            [t for t in token_ids if t not in self.end_ids],
            clean_up_tokenization_spaces=False,
        )

    @property
    def end_ids(self) -> list[int]:
        end = self.config.eos_token_id
        return [] if end is None else end if isinstance(end, list) else [end]

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """[positions, vocabulary]."""
        return self.model(torch.tensor([token_ids])).logits[0]

    def generate(self, row: Row, **options: Any) -> list[int]:
        """The new tokens that greedy decoding gives."""
        token_ids = self.encode(row)
        found = self.model.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        return found[0, len(token_ids) :].tolist()


def uniform(seed: int, prompt_id: Any, position: int) -> float:
    """The random number of a token, as macros/gpt2/choose_token.sql defines it."""
    digest = hashlib.md5(f"{seed}/{prompt_id}/{position}".encode())
    return int(digest.hexdigest()[:13], 16) / 16**13


def processors(options: Row) -> LogitsProcessorList:
    """Those that generate() makes of the options, in its order."""
    chosen = LogitsProcessorList()
    if options.get("repetition_penalty", 1) != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options.get("temperature", 1) != 1:
        chosen.append(TemperatureLogitsWarper(options["temperature"]))
    if options.get("top_k", 50) != 0:
        chosen.append(TopKLogitsWarper(options.get("top_k", 50)))
    if options.get("top_p", 1) < 1:
        chosen.append(TopPLogitsWarper(float(options["top_p"])))
    if options.get("min_p", 0) > 0:
        chosen.append(MinPLogitsWarper(float(options["min_p"])))
    return chosen


def sampling_distribution(
    logits: torch.Tensor, options: Row, token_ids: list[int] | None = None
) -> torch.Tensor:
    """Probabilities in float64 that `transformers` would sample from."""
    scores = processors(options)(
        torch.tensor([token_ids or []], dtype=torch.long), logits.double()[None]
    )
    return scores[0].softmax(-1)


def draw(probabilities: torch.Tensor, u: float) -> tuple[int, float]:
    """The inverse CDF over falling probability, and how near u is to a step."""
    order = torch.argsort(probabilities, descending=True, stable=True)
    cumulative = probabilities[order].cumsum(0)
    n = int((cumulative <= u * cumulative[-1]).sum())
    return int(order[n]), float((cumulative - u).abs().min())


# --- Comparison ---------------------------------------------------------------


def check_logits(ours: torch.Tensor, reference: torch.Tensor, what: str) -> None:
    """Fail with the place of the largest difference and the values around it."""
    assert ours.shape == reference.shape, f"{what}: {ours.shape} not {reference.shape}"
    tolerance = LOGIT_TOLERANCE * float(reference.abs().max())
    difference = (ours - reference).abs()
    worst = int(difference.argmax())
    position, token = divmod(worst, reference.shape[1])
    if not float(difference.max()) <= tolerance:
        shown = slice(max(token - 2, 0), token + 3)
        pytest.fail(
            f"{what}: largest difference {float(difference.max()):.3g} at position "
            f"{position}, token {token}; tolerance {tolerance:.3g}\n"
            f"  ours      {ours[position, shown].tolist()}\n"
            f"  reference {reference[position, shown].tolist()}",
            pytrace=False,
        )


def random_state(config: Any, seed: int) -> State:
    """Random weights whose greedy text is not one token for ever.

    Matrices are scaled by their inputs, so that every layer outweighs the
    embedding, which a tied head would repeat; biases and norms are random too.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    state = {}
    for name, tensor in GPT2LMHeadModel(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            is_scale = "ln_" in name and "weight" in name
            state[name] = noise * 0.2 + (1 if is_scale else 0)
        elif ".h." in name:
            state[name] = noise * 2 / tensor.shape[0] ** 0.5
        elif "wte" in name or "lm_head" in name:
            state[name] = noise * 0.1
        else:
            state[name] = noise * 0.2
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def save_network(folder: Path, config: Any, seed: int) -> Path:
    """Save a random network as the Hub lays it out, without a tokenizer."""
    network = GPT2LMHeadModel(config)
    network.load_state_dict(random_state(config, seed))
    network.save_pretrained(folder)
    return folder
