"""What the driver makes of a call: a Task, which names what the executors compute.

A Task is plain data. prepare.py makes a Network of it, the statements that an executor
needs; executor.py computes its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbt_nn.checkpoint.folder import open_checkpoint
from dbt_nn.command_line import PROJECT, ExpectedError, user_project
from dbt_nn.hub import fetch
from dbt_nn.load import BUNDLED, ENCODER, schema_name

if TYPE_CHECKING:
    from pyspark.sql.types import DataType, StructType

DATABASE = "dbt_nn"  # of every embedded server
SCHEMA = "dbt_nn"  # of the results there
INPUT = "dataframe"  # the relation of the rows there, as messages name it

DEFAULTS = {"gpt2": "gpt2_twin", "ddpm": "ddpm_twin", "minilm": ENCODER[0]}
SOURCES = {**BUNDLED, ENCODER[0]: ENCODER[1]}

# By kind of task: the relation of the results after `<network>_`, and how many rows a
# task of Spark and a batch of the executor's database have at most.
RESULTS = {
    "embed": "embeddings",
    "classify": "classes",
    "score": "scores",
    "complete": "completions",
    "draw": "requests",
}
ROWS = {"embed": 500, "classify": 500, "score": 200, "complete": 100, "draw": 16}


class SparkError(ExpectedError):
    """Of a run on Spark: says what to do."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that driver and executors load.

    source: a folder that all reach, or a name on the Hub.
    name: of its schema, which results tell in the column checkpoint.
    digest: of its content; an executor that finds another one refuses it.
    """

    source: str
    revision: str | None
    name: str
    digest: str
    bytes: int
    family: str  # encoder, text or diffusion


@dataclass(frozen=True)
class Column:
    """A column of the DataFrame, and of the relation that the network reads."""

    name: str  # in the DataFrame
    as_name: str  # in the relation
    type: str  # PostgreSQL's


@dataclass(frozen=True)
class Task:
    """What is to be computed of which columns."""

    kind: str
    network: str
    source: Source
    columns: tuple[Column, ...]
    key: str  # the DataFrame's column that names a row
    options: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    project: str = ""  # a dbt project that has the network; else ours

    @property
    def results(self) -> str:
        """The relation of the results."""
        return f"{self.network}_{RESULTS[self.kind]}"

    @property
    def result_key(self) -> str:
        """The column that names a row in the results."""
        names = {"text": "prompt_id", "diffusion": "image_id"}
        return names.get(self.source.family, "key")

    @property
    def identity(self) -> str:
        """A digest of all that decides a row's result beside the row itself."""
        told = [self.kind, self.network, self.source.digest, self.source.name]
        told += [self.options, self.variables]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


# --- The checkpoint -------------------------------------------------------------


def find_source(
    network: str, checkpoint: str | None, name: str | None, revision: str | None
) -> Source:
    """The checkpoint that a call names, or the network's default one.

    Raises:
        CheckpointError: it is not there, or something is wrong with it.
        SparkError: the network has no default.

    """
    if checkpoint is None:
        name = name or DEFAULTS.get(network)
        if name not in SOURCES:
            raise SparkError(
                f"which checkpoint does {network} run? Give checkpoint=, a folder that "
                "driver and executors reach, or a name on the Hub"
            )
        checkpoint = SOURCES[name]
    else:
        name = schema_name(checkpoint, name)
    with open_checkpoint(fetch(checkpoint, revision)) as found:
        family = "text"
        if found.family.is_scheduled:
            family = "diffusion"
        elif found.family.is_encoder:
            family = "encoder"
        return Source(
            checkpoint,
            revision,
            name,
            found.digest,
            sum(tensor.size for tensor in found.stored) * 4,
            family,
        )


# --- The columns ----------------------------------------------------------------


def postgres_type(kind: DataType) -> str | None:
    """PostgreSQL's type for one of Spark's; None where it has none."""
    from pyspark.sql import types

    plain = {
        types.StringType: "text",
        types.ByteType: "smallint",
        types.ShortType: "smallint",
        types.IntegerType: "integer",
        types.LongType: "bigint",
        types.FloatType: "real",
        types.DoubleType: "double precision",
        types.BooleanType: "boolean",
        types.BinaryType: "bytea",
        types.DateType: "date",
        types.TimestampType: "timestamp with time zone",
        types.TimestampNTZType: "timestamp without time zone",
    }
    for base, name in plain.items():
        if isinstance(kind, base):
            return name
    if isinstance(kind, types.DecimalType):
        return f"numeric({kind.precision},{kind.scale})"
    if isinstance(kind, types.ArrayType):
        element = postgres_type(kind.elementType)
        is_plain = element is not None and not element.endswith(("[]", "jsonb"))
        return f"{element}[]" if is_plain else "jsonb"
    if isinstance(kind, types.MapType | types.StructType):
        return "jsonb"
    return None


def spark_type(name: str) -> DataType:
    """Spark's type for one of PostgreSQL's, as format_type() writes it."""
    from pyspark.sql import types

    if name.endswith("[]"):
        return types.ArrayType(spark_type(name.removesuffix("[]")))
    if name.split("(")[0].rpartition(".")[2] in ("vector", "halfvec"):
        return types.ArrayType(types.FloatType())
    if name.startswith("numeric("):
        precision, scale = name[len("numeric(") : -1].split(",")
        return types.DecimalType(int(precision), int(scale))
    plain = {
        "smallint": types.ShortType,
        "integer": types.IntegerType,
        "bigint": types.LongType,
        "real": types.FloatType,
        "double precision": types.DoubleType,
        "boolean": types.BooleanType,
        "bytea": types.BinaryType,
        "date": types.DateType,
        "timestamp with time zone": types.TimestampType,
        "timestamp without time zone": types.TimestampNTZType,
    }
    return plain.get(name, types.StringType)()


def read_columns(
    schema: StructType, renamed: Mapping[str, str], *, others: bool
) -> tuple[Column, ...]:
    """The DataFrame's columns as those of a relation.

    Args:
        schema: the DataFrame's.
        renamed: the columns that have a role, by the names that they get.
        others: whether the network reads others, too: those with options.

    Raises:
        SparkError: a column with a role is not there, or has a type without a match.

    """
    columns = []
    for as_name, name in renamed.items():
        if name not in schema.names:
            raise SparkError(
                f"the DataFrame has no column {name}: it has {', '.join(schema.names)}"
            )
        kind = postgres_type(schema[name].dataType)
        if kind is None:
            raise SparkError(
                f"the column {name} is of type {schema[name].dataType.simpleString()}, "
                "for which PostgreSQL has none: cast it to string"
            )
        columns.append(Column(name, as_name, kind))
    if others:
        for field_ in schema.fields:
            kind = postgres_type(field_.dataType)
            if kind and field_.name not in (*renamed, *renamed.values()):
                columns.append(Column(field_.name, field_.name, kind))
    return tuple(columns)


# --- The project ----------------------------------------------------------------


def find_project(network: str, project: str | None = None) -> str:
    """The folder of the user's dbt project if it has the network, '' for ours.

    Raises:
        SparkError: neither has it.

    """
    own = Path(project).resolve() if project else user_project()
    if own != PROJECT and (own / "models" / network).is_dir():
        return str(own)
    if (PROJECT / "models" / network).is_dir():
        return ""
    raise SparkError(
        f"there is no network {network} in {own / 'models'}, nor in dbt_nn: "
        f"`dbt-nn generate FOLDER_OR_HUB_NAME --name {network}` writes one"
    )


def make(
    kind: str,
    schema: StructType,
    *,
    network: str,
    roles: Mapping[str, str],
    source: Source,
    options: Mapping[str, Any],
    variables: Mapping[str, Any],
    project: str | None = None,
) -> Task:
    """The task of a call.

    Args:
        kind: one of RESULTS.
        schema: the DataFrame's.
        network: name of its folder in models/.
        roles: names of the DataFrame's columns: key, text, text_pair.
        source: the checkpoint.
        options: of all rows, as in the var <network>_options.
        variables: more vars.
        project: a dbt project that has the network.

    Raises:
        SparkError: the network does not do that, or a column is missing.

    """
    check_kind(kind, network, source)
    key = roles["key"]
    given = {**variables, f"{network}_options": dict(options)}
    given[f"{network}_checkpoint"] = source.name
    relation = f"{SCHEMA}.{INPUT}"
    if source.family == "encoder":
        renamed: dict[str, str] = {name: name for name in roles.values()}
        given[f"{network}_texts"] = relation
        for role, name in roles.items():
            given[f"{network}_{role}"] = name
        # an index of the vectors is for what reads them
        given[f"{network}_index"] = None
    elif source.family == "text":
        renamed = {"prompt_id": key}
        # a prompt may be given in another form alone
        others = {"prompt_token_ids", "messages"} & {*schema.names}
        if roles["text"] in schema.names or not others:
            renamed["prompt"] = roles["text"]
        given[f"{network}_prompts"] = relation
    else:
        renamed = {"image_id": key}
        given[f"{network}_requests"] = relation
    columns = read_columns(schema, renamed, others=source.family != "encoder")
    found = find_project(network, project)
    return Task(kind, network, source, columns, key, dict(options), given, found)


def check_kind(kind: str, network: str, source: Source) -> None:
    """Refuse what a network of the family does not do."""
    does: Mapping[str, Sequence[str]] = {
        "encoder": ("embed", "classify"),
        "text": ("complete", "score", "embed"),
        "diffusion": ("draw",),
    }
    if kind not in does[source.family]:
        raise SparkError(
            f"{network} with the checkpoint {source.name} does not {kind}: it can "
            + " or ".join(does[source.family])
        )


def models_of(task: Task) -> list[Path]:
    """The files that decide what dbt compiles."""
    home = Path(task.project) if task.project else PROJECT
    folders = [PROJECT / "macros", home / "models" / task.network]
    if task.project:
        folders.append(home / "macros")
    files = [file for folder in folders for file in sorted(folder.rglob("*.*"))]
    return [home / "dbt_project.yml", *files]
