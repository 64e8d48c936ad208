"""Compare every layer of the networks with transformers and diffusers.

    dbt-nn check           # or: make check
    dbt-nn check --load    # only loads, and prints the dbt command
    dbt-nn check --kernels plain    # each kernel in its plain form
    dbt-nn check gpt2_medium=FOLDER    # another network's checkpoint

runs the networks on the inputs of reference.safetensors (which
scripts/make_reference.py wrote into each checkpoint's folder) and lets dbt
compare. All of that is in schemas of its own, named after that of your results:
dbt_nn_check, dbt_nn_check_gpt2, dbt_nn_check_minilm and dbt_nn_check_ddpm. They stay
until the next check, to be looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor
from safetensors import SafetensorError, safe_open

from dbt_nn.cli import command
from dbt_nn.command_line import user_project
from dbt_nn.database import (
    PROJECT,
    DatabaseError,
    connect,
    quoted,
    settings,
)
from dbt_nn.hub import fetch
from dbt_nn.load import load_checkpoint, schema_name
from dbt_nn.runner import dbt, query

REFERENCE = "reference.safetensors"
PLACES = ":places"
# the schema's comment, so that no one else's schema is dropped
MARK = "dbt_nn: made by scripts/check.py"
COLUMNS = {
    "prompt_id": "integer",
    "prompt": "text",
    "prompt_token_ids": "integer[]",
    "max_new_tokens": "integer",
    "image_id": "integer",
    "scheduler": "text",
    "num_inference_steps": "integer",
    "seed": "bigint",
    "id": "integer",
    "text": "text",
}


@dataclass(frozen=True)
class Network:
    """A network with its checkpoint, and what the check gives it to read."""

    name: str
    source: str

    @cached_property
    def checkpoint(self) -> Path:
        """Its folder, fetched if the source is a name on the Hub."""
        return fetch(self.source)

    @property
    def schema(self) -> str:
        """The checkpoint's schema, as `make checkpoint` names it."""
        return schema_name(self.source)

    @cached_property
    def file(self) -> Any:
        path = reference_folder(self.source) / REFERENCE
        try:
            return safe_open(path, "np")
        except (OSError, SafetensorError) as error:
            raise DatabaseError(f"{path} can't be read: {error}") from None

    def about(self, key: str) -> Any:
        """A part of the file's metadata."""
        return json.loads(self.file.metadata()[key])

    def check_files(self) -> None:
        """Check that the reference is of this very checkpoint."""
        for name, digest in self.about("files").items():
            path = self.checkpoint / name
            if (
                not path.is_file()
                or hashlib.sha256(path.read_bytes()).hexdigest() != digest
            ):
                raise DatabaseError(
                    f"{path} is not the one that {REFERENCE} was made from: run "
                    f"python scripts/make_reference.py {self.source}"
                )

    def rows(self) -> Iterator[tuple[str, list[int], list[float]]]:
        """Each layer, place and activation."""
        for key in self.file.keys():  # noqa: SIM118 (it is no dict)
            if key.endswith(PLACES):
                continue
            values: np.ndarray = self.file.get_tensor(key)
            places: np.ndarray = self.file.get_tensor(key + PLACES)
            for place, value in zip(places.tolist(), values.tolist(), strict=True):
                yield key.replace(".", "_").lower(), place, value

    def variables(self, schema: str) -> dict[str, Any]:
        """The vars of dbt."""
        kinds = {"prompt_id": "prompts", "image_id": "requests", "id": "texts"}
        inputs = kinds[next(iter(self.about("inputs")[0]))]
        return {
            f"{self.name}_checkpoint": self.schema,
            f"{self.name}_options": {},
            f"{self.name}_{inputs}": quoted(schema, f"{self.name}_reference_inputs"),
            f"{self.name}_reference": quoted(schema, f"{self.name}_reference"),
        }


BUNDLED = [
    "gpt2=checkpoints/gpt2-twin",
    "ddpm=checkpoints/ddpm-twin",
    "minilm=sentence-transformers/all-MiniLM-L6-v2",
]


def reference_folder(source: str) -> Path:
    """Where a checkpoint's reference is: its folder or, if it is fetched, one here."""
    folder = Path(source)
    return folder if folder.is_dir() else PROJECT / "checkpoints" / folder.name.lower()


def use_own_schema() -> str:
    """Turn dbt and this process to the check's schema; return its name."""
    results = settings()["schema"]
    schema = f"{results}_check"
    os.environ["DBT_NN_SCHEMA"] = schema
    if settings()["schema"] != schema:
        raise DatabaseError(
            f"profiles.yml does not take its schema from DBT_NN_SCHEMA, so that the "
            f"check would overwrite your results in {results}. Give it "
            "schema: \"{{ env_var('DBT_NN_SCHEMA', '" + results + "') }}\""
        )
    return schema


def make_schema(cursor: Cursor, schema: str, networks: list[Network]) -> None:
    """Make the check's schema anew, without what an earlier check left."""
    cursor.execute(
        "select obj_description(oid, 'pg_namespace') from pg_namespace "
        "where nspname = %s",
        [schema],
    )
    found = cursor.fetchone()
    if found and found[0] != MARK:
        raise DatabaseError(
            f"the schema {schema} is there and not from a check: rename it, so that "
            "nothing in it is lost"
        )
    for name in [schema, *(f"{schema}_{network.name}" for network in networks)]:
        cursor.execute(
            sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name))
        )
    cursor.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    cursor.execute(
        sql.SQL("comment on schema {} is %s").format(sql.Identifier(schema)), [MARK]
    )


def load(cursor: Cursor, schema: str, network: Network) -> None:
    """Write a network's reference and the inputs that it is of."""
    table = sql.Identifier(schema, f"{network.name}_reference")
    cursor.execute(
        sql.SQL(
            "create table {} (layer text, place integer[], activation real[], "
            "primary key (layer, place))"
        ).format(table)
    )
    lines = "".join(
        f"{layer}\t{{{str(place)[1:-1]}}}\t{{{str(value)[1:-1]}}}\n"
        for layer, place, value in network.rows()
    )
    cursor.copy_expert(sql.SQL("copy {} from stdin").format(table), io.StringIO(lines))
    cursor.execute(sql.SQL("analyze {}").format(table))

    inputs = network.about("inputs")
    table = sql.Identifier(schema, f"{network.name}_reference_inputs")
    columns = [*inputs[0]]
    cursor.execute(
        sql.SQL("create table {} ({})").format(
            table,
            sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(COLUMNS[name]))
                for name in columns
            ),
        )
    )
    insert = sql.SQL("insert into {} values ({})").format(
        table, sql.SQL(", ").join([sql.Placeholder()] * len(columns))
    )
    for row in inputs:
        cursor.execute(insert, [row[name] for name in columns])


def load_all(networks: list[Network]) -> dict[str, Any]:
    """Load checkpoints and references; return the vars that dbt has to get."""
    schema = use_own_schema()
    variables: dict[str, Any] = {}
    for network in networks:
        network.check_files()
        load_checkpoint(network.source, network.schema, if_changed=True)
        variables |= network.variables(schema)
    with (
        contextlib.closing(connect()) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        make_schema(cursor, schema, networks)
        for network in networks:
            load(cursor, schema, network)
    return variables


def farthest_layer(network: Network, variables: dict[str, Any]) -> str:
    """Say how many layers were compared, and how far off the farthest is."""
    relation = variables[f"{network.name}_reference"]
    differences = f"dbt_nn.reference_differences('{network.name}', '{relation}')"
    [row] = query(
        "select *, count(*) over () as layers, sum(places) over () as all_places "
        f"from ({{{{ {differences} }}}}) as difference "
        "order by relative_difference desc",
        1,
        variables,
    )
    libraries = ", ".join(
        f"{name} {version}" for name, version in network.about("libraries").items()
    )
    return (
        f"{network.name}: {row['layers']} layers agree with {libraries}, at "
        f"{row['all_places']} places. The farthest off is {row['layer']}, by "
        f"{float(row['relative_difference']):.1e} of its largest value."
    )


@command(__doc__)
@click.argument("networks", nargs=-1, metavar="[NETWORK=FOLDER]...")
@click.option(
    "--load", "only_load", is_flag=True, help="Load, and print the dbt command."
)
@click.option(
    "--kernels",
    type=click.Choice(["fast", "plain"]),
    default="fast",
    help="plain: the forms that read like the formula (a minute or two).",
)
def main(networks: tuple[str, ...], only_load: bool, kernels: str) -> int:
    """Carry out the command line."""
    chosen = []
    for text in networks or BUNDLED:
        name, equals, folder = text.partition("=")
        if not equals:
            raise click.UsageError(f"{text!r} is not of the form NETWORK=FOLDER")
        path = PROJECT / folder
        chosen.append(Network(name, str(path.resolve() if path.is_dir() else folder)))
    # the vars are others than those of your runs: no need to parse anew for both
    os.environ.setdefault("DBT_TARGET_PATH", str(user_project() / "target" / "check"))
    variables = load_all(chosen)
    variables["kernels"] = kernels
    command = ["build", "--full-refresh"]
    # of the tests these alone, so that no other stops the run before them
    command += ["--indirect-selection", "empty", "--select", "tag:reference"]
    command += [f"{network.name},resource_type:model" for network in chosen]
    if only_load:
        command += ["--vars", json.dumps(variables)]
        print(f"DBT_NN_SCHEMA={os.environ['DBT_NN_SCHEMA']} dbt {shlex.join(command)}")
        return 0
    if dbt(*command, variables=variables):
        return 1
    for network in chosen:
        print(farthest_layer(network, variables))
    return 0
