"""Runs of a network in dbt, in a schema of the test's own.

What the reference libraries make of the same input is in text_reference.py and
image_reference.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import numpy as np
import psycopg2
import torch
from psycopg2 import sql
from psycopg2.extras import Json, RealDictCursor, execute_values

from conftest import Dbt, run_script
from dbt_nn.database import PROJECT

TWIN = PROJECT / "checkpoints" / "gpt2-twin"
UNET_TWIN = PROJECT / "checkpoints" / "ddpm-twin"

PROMPT_TYPES = {
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
    "choices": "jsonb",
    "pooling_mode": "text",
    "regex": "text",
    "json_schema": "json",
}
REQUEST_TYPES = {
    "image_id": "integer",
    "scheduler": "text",
    "num_inference_steps": "integer",
    "eta": "float8",
    "seed": "bigint",
}

# Beside a database and dbt, more threads wait for each other.
torch.set_num_threads(1)

Row = dict[str, Any]


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
    for name in (
        *("macros", "seeds", "scripts", "dbt_nn", "models", "assets"),
        "tests/generic",
    ):
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(PROJECT / "dbt_project.yml", folder)
    return folder


def copy_bare_project(folder: Path) -> Path:
    """The project without a network, for one of the test's: dbt parses it fast."""
    for name in ("macros", "seeds", "tests/generic"):
        shutil.copytree(PROJECT / name, folder / name)
    shutil.copy(PROJECT / "dbt_project.yml", folder)
    return folder


@contextmanager
def entered(
    connection: psycopg2.extensions.connection, *schemas: str
) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor for a network's functions, which find its relations by their names."""
    with connection.cursor() as cursor:
        cursor.execute(f"set search_path = {', '.join([*schemas, 'public'])}")
        try:
            yield cursor
        finally:
            cursor.execute("reset search_path")


@dataclass
class Runs:
    """`dbt run --select <network>` with its input from a table, in its own schema.

    The vars stay the same from run to run where they can: dbt then need not
    parse the project again.
    """

    dbt: Dbt
    connection: psycopg2.extensions.connection
    schema: str
    target: Path
    network: str
    project: Path = PROJECT
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drop()
        self.execute(f"create schema {self.schema}")

    def drop(self) -> None:
        for schema in (self.schema, self.layer_schema):
            self.execute(f"drop schema if exists {schema} cascade")

    @property
    def layer_schema(self) -> str:
        return f"{self.schema}_{self.network}"

    @property
    def environment(self) -> dict[str, str]:
        return {"DBT_NN_SCHEMA": self.schema, "DBT_TARGET_PATH": str(self.target)}

    @property
    def input(self) -> dict[str, str]:
        """The var that names the table of what is to be done."""
        raise NotImplementedError

    def execute(self, statement: str, values: Any = None) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)

    def query(self, statement: str, values: Any = None) -> list[Row]:
        with self.connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(statement, values)
            return [dict(row) for row in cursor]

    def arguments(self, **variables: Any) -> list[str]:
        """Of dbt: the project and the vars."""
        given = {**self.input, **self.variables, **variables}
        return ["--project-dir", str(self.project), "--vars", json.dumps(given)]

    def run(
        self, *flags: str, check: bool = True, **variables: Any
    ) -> CompletedProcess[str]:
        """Run the network, or what `--select` says, on the input that is written."""
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

    def layer(self, path: str) -> dict[int, np.ndarray]:
        """A layer's activations by sequence_id: [positions, n], or [1, n]."""
        name = f"{self.network}_{path.replace('.', '_').lower()}"
        relation = f"{self.layer_schema}.{name}"
        with self.connection.cursor() as cursor:
            cursor.execute(f"select * from {relation} limit 0")
            names = [part.name for part in cursor.description]
        place = [n for n in ("sequence_id", "position") if n in names]
        found: dict[int, list] = {}
        for row in self.query(
            f"select sequence_id, activation::real[] as x from {relation} "
            f"order by {', '.join(place)}"
        ):
            found.setdefault(row["sequence_id"], []).append(row["x"])
        return {n: np.array(rows, dtype="f8") for n, rows in found.items()}


# --- Text ---------------------------------------------------------------------


@dataclass
class Gpt2(Runs):
    """Prompts to completions."""

    network: str = "gpt2"

    @property
    def input(self) -> dict[str, str]:
        return {f"{self.network}_prompts": f"{self.schema}.test_prompts"}

    def write_prompts(self, rows: Iterable[Row], table: str = "test_prompts") -> str:
        """Make the table, with the columns that the rows have."""
        rows = list(rows)
        columns = [name for name in PROMPT_TYPES if any(name in row for row in rows)]
        name = sql.Identifier(self.schema, table)
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("drop table if exists {}").format(name))
            cursor.execute(
                sql.SQL("create table {} ({})").format(
                    name,
                    sql.SQL(", ").join(
                        sql.SQL("{} {}").format(
                            sql.Identifier(column), sql.SQL(PROMPT_TYPES[column])
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
                for name in ("stop_strings", "choices", "json_schema"):
                    if values.get(name) is not None:
                        values[name] = Json(values[name])
                cursor.execute(insert, [values.get(column) for column in columns])
        return f"{self.schema}.{table}"

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


# --- Whole texts --------------------------------------------------------------


@dataclass
class Encoder(Runs):
    """Texts to vectors or classes."""

    network: str = "minilm"

    @property
    def input(self) -> dict[str, str]:
        return {f"{self.network}_texts": f"{self.schema}.test_texts"}

    def write_texts(self, rows: Iterable[Row], table: str = "test_texts") -> None:
        """Make the table (id, text, more columns of text that the rows have)."""
        rows = list(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        name = sql.Identifier(self.schema, table)
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("drop table if exists {}").format(name))
            cursor.execute(
                sql.SQL("create table {} ({})").format(
                    name,
                    sql.SQL(", ").join(
                        sql.SQL("{} {}").format(
                            sql.Identifier(column),
                            sql.SQL("integer" if column == "id" else "text"),
                        )
                        for column in columns
                    ),
                )
            )
            insert = sql.SQL("insert into {} values %s").format(name)
            execute_values(
                cursor,
                insert.as_string(cursor),
                [[row.get(column) for column in columns] for row in rows],
            )

    def results(self, kind: str = "embeddings") -> dict[tuple[int, int], Row]:
        """The rows of <network>_embeddings or _classes by key and chunk."""
        vector = "embedding::real[] as vector, " if kind == "embeddings" else ""
        rows = self.query(
            f"select {vector}* from {self.schema}.{self.network}_{kind} "
            "order by key, chunk"
        )
        return {(row["key"], row["chunk"]): row for row in rows}

    def tokens(self) -> dict[int, list[int]]:
        """The tokens of the current batch by sequence_id."""
        rows = self.query(
            "select sequence_id, array_agg(token_id order by position) as ids, "
            "array_agg(type_id order by position) as types "
            f"from {self.schema}.{self.network}_tokens group by sequence_id"
        )
        return {row["sequence_id"]: (row["ids"], row["types"]) for row in rows}


# --- Images -------------------------------------------------------------------


@dataclass
class Ddpm(Runs):
    """Requests to images."""

    network: str = "ddpm"

    @property
    def input(self) -> dict[str, str]:
        return {f"{self.network}_requests": f"{self.schema}.test_requests"}

    def write_requests(self, rows: Iterable[Row]) -> None:
        """Make the table <schema>.test_requests, with every option a column."""
        name = sql.Identifier(self.schema, "test_requests")
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
            for column, kind in REQUEST_TYPES.items()
        )
        insert = sql.SQL("insert into {} values ({})").format(
            name, sql.SQL(", ").join([sql.Placeholder()] * len(REQUEST_TYPES))
        )
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("drop table if exists {}").format(name))
            cursor.execute(sql.SQL("create table {} ({})").format(name, columns))
            for row in rows:
                cursor.execute(insert, [row.get(column) for column in REQUEST_TYPES])

    def draw(self, rows: Iterable[Row], **options: Any) -> CompletedProcess[str]:
        self.write_requests(rows)
        return self.run(**options)

    def layer_models(self) -> set[str]:
        """Names of the models in the network's folder of layers."""
        folder = self.project / "models" / self.network / "layers"
        return {file.stem for file in folder.rglob("*.sql")}

    def layer_tables(self) -> set[str]:
        rows = self.query(
            "select table_name from information_schema.tables where table_schema = %s",
            [self.layer_schema],
        )
        return {row["table_name"] for row in rows}

    def layers(self) -> dict[str, torch.Tensor]:
        """Each layer by its model's name: [images, h, w, n] or [images, n]."""
        models = self.layer_models()
        assert models == self.layer_tables()
        return {
            name: self.tensor(f"{self.layer_schema}.{name}", "activation")
            for name in models
        }

    def tensor(self, relation: str, column: str, where: str = "true") -> torch.Tensor:
        """A column of vectors by image, row and column."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"select * from {relation} limit 0")
            names = [part.name for part in cursor.description]
            place = [name for name in ("image_id", "y", "x") if name in names]
            # a vector's binary form: two numbers of 2 bytes, then 4 bytes a value
            cursor.execute(
                f"select {', '.join(f'count(distinct {name})' for name in place)}, "
                f"count(*), string_agg(substring(vector_send({column}) from 5), '' "
                f"order by {', '.join(place)}) from {relation} where {where}"
            )
            *sizes, count, values = cursor.fetchone()
        assert count == math.prod(sizes) > 0, (relation, sizes, count)
        array = np.frombuffer(values, ">f4").astype("f4")
        return torch.from_numpy(array).reshape(*sizes, -1)

    def samples(self, image_id: int, step: int) -> torch.Tensor:
        """[channels, h, w], as torch has images."""
        return self.tensor(
            f"{self.schema}.{self.network}_images",
            "channels",
            f"image_id = {image_id} and step = {step}",
        )[0].permute(2, 0, 1)

    def pixels(self, image_id: int, step: int) -> np.ndarray:
        """[h, w, channels] in 0..255."""
        rows = self.query(
            f"select y, x, pixel from {self.schema}.{self.network}_pixels "
            "where image_id = %s and step = %s order by y, x",
            [image_id, step],
        )
        height, width = rows[-1]["y"] + 1, rows[-1]["x"] + 1
        return np.array([row["pixel"] for row in rows]).reshape(height, width, -1)

    def rows(self) -> list[Row]:
        """Everything that was drawn, but for the digest of the request."""
        return self.query(
            f"select image_id, step, y, x, activation::text as activation "
            f"from {self.schema}.{self.network}_samples order by 1, 2, 3, 4"
        )
