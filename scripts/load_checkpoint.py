"""Load a checkpoint into the database, in a schema of its own.

    python scripts/load_checkpoint.py SOURCE [--name NAME]
    python scripts/load_checkpoint.py --list

SOURCE is a folder or a name on the Hugging Face Hub. Everything is checked
before anything is written, and written in one transaction under a passing name
that takes NAME's place at the end: whatever goes wrong, an earlier checkpoint
of that name stays as it was, and nobody ever sees half of one.

The schema holds:
    config      parameter, value: config.json, a row per key; for a UNet with
                the defaults of keys that the file lacks
    tensors     tensor, shape, dtype, relation: which tensor is in which table
                (several, separated by ', ', for the fused q, k and v)
    vocabulary  token_id, token (its bytes), special; empty without a tokenizer
    merges      left_id, right_id, rank, token_id; both for a language network
    scheduler   parameter, value: scheduler_config.json with the defaults of its
                class, a row per key; for a UNet
and a table per module, named after its path with `_` for `.`:
    linear      chunk, feature, weight vector, bias: the inputs of an output
                feature, split in equal chunks of at most CHUNK; weight is a
                halfvec with --dtype float16
    convolution the same; inputs are ordered by y, x and channel
    norm        weight vector, bias vector: one row
A module that shares another's weights is a view of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from tqdm import tqdm

import database
from checkpoint import (
    BLOCK_BYTES,
    DTYPE_BYTES,
    MIB,
    PIPELINE_INDEX,
    Alias,
    Checkpoint,
    CheckpointError,
    Matrix,
    Module,
    Norm,
    Progress,
    check_pipeline,
    open_checkpoint,
    quoted,
    sample_size,
)

# Floats of one row: 1,920 of them and the row's other columns fit a page of
# 8 KiB, so that no weight is ever toasted.
CHUNK = 1920
# Blocks of about 1 MiB that are packed while the server takes earlier ones.
AHEAD = 32
# What --dtype takes, and pgvector's type for it.
DTYPES = {"float32": "vector", "float16": "halfvec"}
MAX_HALF = float(np.finfo(np.float16).max)
# Two vectors of this size, a norm's row, fit a page as well.
PLAIN_NORM = 1000
MARK = "dbt_nn checkpoint: "
TABLE_MARK = "dbt_nn: "
BUILDING = "dbt_nn_loading_"  # and the server process: while it is written
EXTENSION = "vector"
MINIMUM_PGVECTOR = (0, 7)
MINIMUM_SERVER = 160_000
# How long to wait for tables in use when a checkpoint is replaced. One try is
# shorter than the server's deadlock_timeout (1 s), so that it is never the
# others' statement that is cancelled.
LOCK_TRY_MS = 500
LOCK_PATIENCE_S = 120
Item = TypeVar("Item")

# What a Hub snapshot is made of here: never pickles.
# `*` matches `/` too, so a pipeline's folders come along.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt"]
MAX_HUB_NAME = 200
# Other formats and precisions, and weights of the training: EMA, states of its
# steps, and whatever is deeper than a pipeline's parts.
HUB_IGNORED = [
    *["onnx/*", "*.fp16.*", "*.bf16.*", "*.non_ema.*"],
    *["unet_ema/*", "checkpoint-*/*", "*/*/*"],
]


# --- Where the checkpoint comes from ------------------------------------------


def fetch(source: str, revision: str | None = None) -> Path:
    """Turn a folder or a Hub name into a folder that exists.

    Raises:
        CheckpointError: no such folder, no such name, or the Hub is out of
            reach and the name is not in the local cache.

    """
    try:
        folder = Path(source).expanduser()
        exists = source != "" and folder.exists()
        is_folder = exists and folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        folder, exists, is_folder = Path(), False, False
    if is_folder:
        if revision is not None:
            raise CheckpointError(
                f"--revision {revision} is for names on the Hub, but {source} is a "
                "folder. Leave it out."
            )
        return folder
    if exists:
        raise CheckpointError(
            f"{source} is a file. Give the folder that holds it with its config.json."
        )
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    if len(source) > MAX_HUB_NAME or not re.fullmatch(rf"({part}/)?{part}", source):
        raise CheckpointError(
            f"There is no folder {quoted(source)}. Give a folder that exists, or a "
            "name on the Hugging Face Hub such as openai-community/gpt2."
        )
    return _fetch_from_hub(source, revision)


def _fetch_from_hub(name: str, revision: str | None) -> Path:
    # importing it takes a second, which a folder need not wait for
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # a pipeline of another kind is refused before gigabytes of it are fetched
        for patterns in ([PIPELINE_INDEX], HUB_PATTERNS):
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=patterns,
                    ignore_patterns=HUB_IGNORED,
                )
            )
            check_pipeline(folder)
        return folder
    except CheckpointError:
        raise
    except GatedRepoError:
        reason = (
            "it is gated: accept its terms on its page and log in with `hf auth login`"
        )
    except RepositoryNotFoundError:
        reason = "the Hub has no such name, or it is private: check the spelling"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision}: leave --revision out, or correct it"
    except HFValidationError as error:
        reason = f"it is no valid name: {error}"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = (
            "the Hub can't be reached and the local cache does not have it: check the "
            "connection, or copy the checkpoint here and give its folder"
        )
    except HfHubHTTPError as error:
        reason = f"the Hub answered {error}"
    except Exception as error:  # what the HTTP client raises depends on its version
        reason = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"{name} is neither a folder here nor could it be fetched from the Hugging "
        f"Face Hub: {' '.join(reason.split())}."
    ) from None


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


# --- The server ---------------------------------------------------------------


def check_server(cursor: Cursor) -> str:
    """Check the server's version and pgvector; install the extension if need be.

    Returns:
        The schema that holds pgvector's types.

    Raises:
        CheckpointError: too old, or without pgvector.

    """
    version = cursor.connection.server_version
    if version < MINIMUM_SERVER:
        raise CheckpointError(
            f"The server is PostgreSQL {version // 10_000}; {MINIMUM_SERVER // 10_000} "
            "or newer is needed. Upgrade it, or use the embedded server."
        )
    needed = ".".join(map(str, MINIMUM_PGVECTOR))
    query = """
        select extension.extversion, namespace.nspname
        from pg_extension as extension
        join pg_namespace as namespace on namespace.oid = extension.extnamespace
        where extension.extname = %s
    """
    cursor.execute(query, [EXTENSION])
    found = cursor.fetchone()
    if found is None:
        cursor.execute(
            "select 1 from pg_available_extensions where name = %s", [EXTENSION]
        )
        if cursor.fetchone() is None:
            raise CheckpointError(
                f"The server does not have pgvector (extension {EXTENSION}). Install "
                f"pgvector {needed} or newer on it, or use the embedded server."
            )
        try:
            cursor.execute(
                sql.SQL("create extension if not exists {}").format(
                    sql.Identifier(EXTENSION)
                )
            )
        except errors.InsufficientPrivilege:
            raise CheckpointError(
                f"The database does not have the extension {EXTENSION} and this role "
                f"may not create it. Let its owner run: create extension {EXTENSION}"
            ) from None
        cursor.execute(query, [EXTENSION])
        found = cursor.fetchone()
    installed = tuple(int(part) for part in re.findall(r"\d+", found[0])[:2])
    if installed < MINIMUM_PGVECTOR:
        raise CheckpointError(
            f"The database has pgvector {found[0]}; {needed} or newer is needed. "
            f"Install it on the server, then run: alter extension {EXTENSION} update"
        )
    return found[1]


def check_schema(cursor: Cursor, name: str) -> bool:
    """Whether a checkpoint of this name exists.

    Raises:
        CheckpointError: the schema exists and is not a checkpoint.

    """
    cursor.execute(
        "select obj_description(oid, 'pg_namespace') from pg_namespace "
        "where nspname = %s",
        [name],
    )
    found = cursor.fetchone()
    if found is None:
        return False
    if not (found[0] or "").startswith(MARK):
        raise CheckpointError(
            f"The schema {name} exists and is not a checkpoint. Give another --name, "
            "so that nothing in it is lost."
        )
    return True


def loaded_checkpoints(cursor: Cursor) -> dict[str, dict[str, object]]:
    """The checkpoints in the database: what each one's comment says, by name."""
    cursor.execute(
        """
        select nspname, obj_description(oid, 'pg_namespace')
        from pg_namespace
        where starts_with(obj_description(oid, 'pg_namespace'), %s)
        order by nspname
        """,
        [MARK],
    )
    result: dict[str, dict[str, object]] = {}
    for name, comment in cursor.fetchall():
        try:
            about = json.loads(comment.removeprefix(MARK))
        except ValueError:
            about = None
        result[name] = about if isinstance(about, dict) else {}
    return result


# --- Binary COPY --------------------------------------------------------------

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


class Stream:
    """Hands out blocks, in order, to `copy_expert`, which reads it like a file."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        """Take blocks of any size."""
        self._blocks = iter(blocks)
        self._rest = b""
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Return the next block or, if it is longer than `size`, its beginning."""
        try:
            block = self._rest or next(self._blocks, b"")
        except BaseException as error:
            self.error = error
            raise
        self._rest = block[size:]
        return block[:size] if self._rest else block


def chunks(inputs: int) -> list[tuple[int, int]]:
    """Split a row of `inputs` floats: [first, last) of each chunk."""
    size = math.ceil(inputs / math.ceil(inputs / CHUNK))
    return [(at, min(inputs, at + size)) for at in range(0, inputs, size)]


def pack_rows(
    chunk: int,
    first: int,
    weight: np.ndarray,
    bias: np.ndarray,
    dtype: str = "float32",
) -> np.ndarray:
    """Pack rows of a linear module for COPY.

    Args:
        chunk: the chunk of inputs that these rows hold.
        first: the output feature of the first row.
        weight: float32 [rows, floats].
        bias: float32 [rows].
        dtype: of the packed weight, one of DTYPES.

    Returns:
        A packed record array [rows]: (chunk int, feature int, weight vector or
        halfvec, bias real), each field preceded by its length, as pgvector's
        `vector_recv` and `halfvec_recv` and Postgres read them (big-endian).

    """
    rows, floats = weight.shape
    element = np.dtype(dtype).newbyteorder(">")
    record = np.dtype(
        [
            ("fields", ">i2"),
            ("chunk_bytes", ">i4"),
            ("chunk", ">i4"),
            ("feature_bytes", ">i4"),
            ("feature", ">i4"),
            ("weight_bytes", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("weight", element, (floats,)),
            ("bias_bytes", ">i4"),
            ("bias", ">f4"),
        ]
    )
    packed = np.empty(rows, dtype=record)
    packed["fields"] = 4
    packed["chunk_bytes"] = packed["feature_bytes"] = packed["bias_bytes"] = 4
    packed["chunk"] = chunk
    packed["feature"] = np.arange(first, first + rows)
    packed["weight_bytes"] = 4 + element.itemsize * floats
    packed["dimensions"] = floats
    packed["unused"] = 0
    packed["weight"] = weight
    packed["bias"] = bias
    return packed


def matrix_blocks(
    matrix: Matrix, checkpoint: Checkpoint, step: Progress, dtype: str
) -> Iterator[bytes]:
    """Pack a linear module for COPY, in (chunk, feature) order.

    At most two blocks of BLOCK_BYTES are in memory.

    Raises:
        CheckpointError: a weight is too large for `dtype`.

    """
    tensors = checkpoint.tensors
    bias = matrix.read_bias(tensors)
    itemsize = DTYPE_BYTES[tensors[matrix.weight].dtype]
    height = max(1, BLOCK_BYTES // (4 * matrix.inputs))
    whole = (
        matrix.read(tensors, 0, matrix.outputs) if height >= matrix.outputs else None
    )
    yield HEADER
    for chunk, (first, last) in enumerate(chunks(matrix.inputs)):
        if chunk == 1:
            bias = np.zeros_like(bias)
        rows = max(1, MIB // (4 * (last - first) + 32))
        for top in range(0, matrix.outputs, height):
            bottom = min(top + height, matrix.outputs)
            block = matrix.read(tensors, top, bottom) if whole is None else whole
            for begin in range(top, bottom, rows):
                end = min(begin + rows, bottom)
                weight = block[begin - top : end - top, first:last]
                if dtype == "float16" and (largest := abs(weight).max()) > MAX_HALF:
                    raise CheckpointError(
                        f"{matrix.weight} has an element of size {largest:g}, and "
                        f"float16 holds {MAX_HALF:,.0f}. Load it without --dtype "
                        "float16."
                    )
                packed = pack_rows(chunk, begin, weight, bias[begin:end], dtype)
                yield packed.tobytes()
                step(weight.size * itemsize)
    yield TRAILER


def norm_blocks(norm: Norm, checkpoint: Checkpoint, step: Progress) -> Iterator[bytes]:
    """Pack a norm for COPY: one row of two vectors."""
    yield HEADER + (2).to_bytes(2, "big")
    for name in (norm.weight, norm.bias):
        tensor = checkpoint.tensors[name]
        values = tensor.read(0, norm.size).astype(">f4").tobytes()
        length, size = (
            (4 + len(values)).to_bytes(4, "big"),
            norm.size.to_bytes(2, "big"),
        )
        yield length + size + bytes(2) + values
        step(tensor.nbytes)
    yield TRAILER


def module_blocks(
    checkpoint: Checkpoint, step: Progress, dtype: str
) -> Iterator[bytes | None]:
    """Pack the modules that are tables, one after the other, None after each."""
    for module in checkpoint.modules:
        if isinstance(module, Matrix):
            yield from matrix_blocks(module, checkpoint, step, dtype)
        elif isinstance(module, Norm):
            yield from norm_blocks(module, checkpoint, step)
        else:
            continue
        yield None


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, while a thread makes the next AHEAD of them."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(AHEAD))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


# --- Writing ------------------------------------------------------------------


class Writer:
    """Creates and fills the relations of a checkpoint in an open transaction."""

    def __init__(
        self, cursor: Cursor, schema: str, vector_schema: str, dtype: str
    ) -> None:
        """Write into `schema`, with the vector types of `vector_schema`."""
        self.cursor = cursor
        self.schema = schema
        self.vector = sql.Identifier(vector_schema, "vector")
        self.weight = sql.Identifier(vector_schema, DTYPES[dtype])

    def table(
        self,
        name: str,
        columns: str,
        key: str | None,
        comment: str,
        blocks: Iterable[bytes],
        *,
        binary: bool,
    ) -> None:
        """Create a table, fill it with frozen rows, index and analyze it.

        Args:
            name: the table.
            columns: their definitions; `{vector}` stands for that type, `{weight}`
                for the type of linear modules' weights.
            key: the primary key's columns, if any.
            comment: what the table holds.
            blocks: COPY's input.
            binary: whether that is COPY's binary format or its text format.

        """
        table = sql.Identifier(self.schema, name)
        definitions = sql.SQL(columns).format(vector=self.vector, weight=self.weight)
        self.cursor.execute(sql.SQL("create table {} ({})").format(table, definitions))
        copy = sql.SQL("copy {} from stdin with (format {}, freeze)").format(
            table, sql.SQL("binary" if binary else "text")
        )
        stream = Stream(blocks)
        try:
            self.cursor.copy_expert(copy, stream, size=2 * MIB)
        except psycopg2.Error as error:
            # psycopg2 turns whatever `read` raises into an error of its own
            if stream.error is not None:
                raise stream.error from None
            if "error in .read()" in str(error):
                # only a signal strikes before `read` can note it
                raise KeyboardInterrupt from None
            raise
        if key is not None:
            self.cursor.execute(
                sql.SQL("alter table {} add primary key ({})").format(
                    table, sql.SQL(key)
                )
            )
        self.comment("table", table, comment)
        self.cursor.execute(sql.SQL("analyze {}").format(table))

    def comment(self, kind: str, relation: sql.Composable, comment: str) -> None:
        """Comment on a relation, marked as ours."""
        self.cursor.execute(
            sql.SQL("comment on {} {} is {}").format(
                sql.SQL(kind), relation, sql.Literal(TABLE_MARK + comment)
            )
        )

    def module(
        self, module: Module, checkpoint: Checkpoint, blocks: Iterable[bytes]
    ) -> None:
        """Create and fill a module's table or view."""
        if isinstance(module, Alias):
            view = sql.Identifier(self.schema, module.relation)
            target = sql.Identifier(self.schema, module.target)
            self.cursor.execute(
                sql.SQL("create view {} as select * from {}").format(view, target)
            )
            self.comment("view", view, f"shares the weights of {module.target}")
            return
        origin = checkpoint.tensors[module.weight]
        source = f"{origin.dtype} {module.weight}"
        if module.bias is not None:
            source += f" and {module.bias}"
        if isinstance(module, Norm):
            plain = "storage plain" if module.size <= PLAIN_NORM else ""
            self.table(
                module.relation,
                f"weight {{vector}} {plain} not null, bias {{vector}} {plain} not null",
                None,
                f"norm, {module.size} wide; from {source} {list(origin.shape)}",
                blocks,
                binary=True,
            )
            return
        kind, part = "linear", ""
        if len(module.shape) > 2:
            kind = f"convolution {' x '.join(map(str, module.shape[2:]))}"
        if module.features is not None:
            end = module.first + module.features
            part = f", features {module.first} to {end - 1}"
        self.table(
            module.relation,
            "chunk int not null, feature int not null, "
            "weight {weight} storage plain not null, bias real not null",
            "chunk, feature",
            f"{kind}, {module.inputs} -> {module.outputs}, "
            f"{len(chunks(module.inputs))} chunk(s); "
            f"from {source} {list(origin.shape)}{part}",
            blocks,
            binary=True,
        )

    def fixed(self, checkpoint: Checkpoint) -> None:
        """Create config, tensors and what else belongs to the family."""

        def escape(value: object) -> str:
            text = str(value).replace("\\", "\\\\")
            for plain, escaped in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
                text = text.replace(plain, escaped)
            return text

        def lines(rows: Iterable[tuple[object, ...]]) -> list[bytes]:
            """Write rows of escaped values in COPY's text format."""
            return ["".join("\t".join(map(str, row)) + "\n" for row in rows).encode()]

        relations: dict[str, list[str]] = {}
        for module in checkpoint.modules:
            for name, _ in module.tensors():
                relations.setdefault(name, []).append(module.relation)
            if isinstance(module, Alias) and module.copy in checkpoint.tensors:
                relations[module.copy] = [module.relation]

        def settings(name: str, comment: str, values: dict[str, Any]) -> None:
            self.table(
                name,
                "parameter text not null, value jsonb not null",
                "parameter",
                comment,
                lines(
                    (escape(key), escape(json.dumps(item)))
                    for key, item in values.items()
                ),
                binary=False,
            )

        settings(
            "config",
            f"config.json of a {checkpoint.family.name} network, a row per key",
            checkpoint.config,
        )
        if checkpoint.scheduler is not None:
            settings(
                "scheduler",
                "scheduler_config.json of the network, a row per key",
                checkpoint.scheduler,
            )
        self.table(
            "tensors",
            "tensor text not null, shape int[] not null, dtype text not null, "
            "relation text not null",
            "tensor",
            "the tensors in the checkpoint's files, and the relations that hold them",
            lines(
                (
                    name,
                    "{" + ",".join(map(str, checkpoint.tensors[name].shape)) + "}",
                    checkpoint.tensors[name].dtype,
                    ", ".join(names),
                )
                for name, names in relations.items()
            ),
            binary=False,
        )
        if checkpoint.family.embedding_rows(checkpoint.config) is None:
            return
        texts = checkpoint.tokenizer
        self.table(
            "vocabulary",
            "token_id int not null, token bytea not null, special boolean not null",
            "token_id",
            "the tokenizer's tokens as bytes; special ones are matched whole",
            lines(
                (token_id, f"\\\\x{token.hex()}", special)
                for token_id, token, special in (texts.vocabulary if texts else ())
            ),
            binary=False,
        )
        self.table(
            "merges",
            "left_id int not null, right_id int not null, rank int not null, "
            "token_id int not null",
            "left_id, right_id",
            "the tokenizer's merges; the lowest rank comes first",
            lines(texts.merges if texts else ()),
            binary=False,
        )


def drop_checkpoint(cursor: Cursor, name: str, *, dependents: bool = False) -> None:
    """Drop an earlier checkpoint, and nothing else.

    Args:
        cursor: in a transaction.
        name: its schema, which `check_schema` found to be ours.
        dependents: also drop what others built on it or put into it.

    Raises:
        CheckpointError: in use for too long, or others depend on it.

    """
    cursor.execute(
        """
        select class.relname, class.relkind = 'v'
        from pg_class as class
        where
            class.relnamespace = %s::regnamespace
            and class.relkind in ('r', 'v')
            and starts_with(obj_description(class.oid, 'pg_class'), %s)
        """,
        [sql.Identifier(name).as_string(cursor), TABLE_MARK],
    )
    found = cursor.fetchall()
    schema = sql.Identifier(name)
    steps = [
        sql.SQL("drop {} {}").format(
            sql.SQL(kind),
            sql.SQL(", ").join(sql.Identifier(name, r) for r, v in found if v is view),
        )
        for kind, view in (("view", True), ("table", False))
        if any(v is view for _, v in found)
    ]
    steps.append(sql.SQL("drop schema {}").format(schema))
    if dependents:
        steps = [sql.SQL("drop schema {} cascade").format(schema)]
    # each session of a run shares this lock: no run reads two checkpoints
    reading = sql.SQL(
        "select pg_advisory_xact_lock(hashtext('dbt_nn.checkpoint'), hashtext({}))"
    ).format(sql.Literal(name))
    steps.insert(0, reading)
    cursor.execute("set local lock_timeout = %s", [LOCK_TRY_MS])
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        cursor.execute("savepoint replace_checkpoint")
        try:
            for statement in steps:
                cursor.execute(statement)
            break
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            cursor.execute("rollback to savepoint replace_checkpoint")
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"The checkpoint {name} has been in use for {LOCK_PATIENCE_S} s "
                    "and can't be replaced. Load again when the run that reads it "
                    "is done, or give another --name."
                ) from None
            time.sleep(0.2)
        except errors.DependentObjectsStillExist as error:
            detail = " ".join((error.diag.message_detail or "").split())
            raise CheckpointError(
                f"The checkpoint {name} can't be replaced, because other objects "
                f"depend on it or are in its schema: {detail}. Drop or move them, or "
                "drop them along with it by --drop-dependents."
            ) from None
    cursor.execute("set local lock_timeout = 0")


def digest(checkpoint: Checkpoint, dtype: str) -> str:
    """Name what is loaded: the checkpoint's content, and a dtype that changes it."""
    return checkpoint.digest + ("" if dtype == "float32" else f"-{dtype}")


def load(
    connection: Connection,
    checkpoint: Checkpoint,
    name: str,
    *,
    source: str,
    revision: str | None = None,
    dtype: str = "float32",
    drop_dependents: bool = False,
    progress: Callable[[int], Progress] | None = None,
) -> None:
    """Write a checkpoint into the schema `name`, in one transaction.

    Args:
        connection: idle; its autocommit is switched off.
        checkpoint: checked.
        name: a safe schema name.
        source: where it comes from, to be remembered.
        revision: the Hub's revision, if one was asked for.
        dtype: of the linear modules' weights, one of DTYPES.
        drop_dependents: see `drop_checkpoint`.
        progress: called with the bytes to write; the result is called with
            the bytes of each step.

    Raises:
        CheckpointError: the server refuses, or a weight is too large for `dtype`;
            nothing has changed then.

    """
    connection.rollback()
    connection.autocommit = False
    step = progress(sum(t.nbytes for t in checkpoint.stored)) if progress else None
    about = {
        "family": checkpoint.family.name,
        "parameters": checkpoint.parameters,
        "source": source,
        "revision": revision,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.stored}),
        "tokens": len(checkpoint.tokenizer.vocabulary) if checkpoint.tokenizer else 0,
        "dtype": dtype,
        "digest": digest(checkpoint, dtype),
        "loaded_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        with connection, connection.cursor() as cursor:
            vector_schema = check_server(cursor)
            # names are qualified; nothing in a schema of others can stand in
            cursor.execute("set local search_path = pg_catalog")
            cursor.execute("set local statement_timeout = 0")
            cursor.execute("set local idle_in_transaction_session_timeout = 0")
            # to start a worker takes longer than it saves on an index of the keys
            cursor.execute("set local max_parallel_maintenance_workers = 0")
            # statistics of 3,000 rows do: plans depend on the tables' sizes alone
            cursor.execute("set local default_statistics_target = 10")
            # one load of a name at a time; the second one replaces the first
            cursor.execute(
                "select pg_advisory_xact_lock(hashtext('dbt_nn'), hashtext(%s))", [name]
            )
            exists = check_schema(cursor, name)
            cursor.execute("select pg_backend_pid()")
            building = f"{BUILDING}{cursor.fetchone()[0]}"
            cursor.execute(sql.SQL("create schema {}").format(sql.Identifier(building)))
            cursor.execute(
                sql.SQL("comment on schema {} is {}").format(
                    sql.Identifier(building), sql.Literal(MARK + json.dumps(about))
                )
            )
            writer = Writer(cursor, building, vector_schema, dtype)
            writer.fixed(checkpoint)
            packed = module_blocks(checkpoint, step or (lambda _: None), dtype)
            with contextlib.closing(ahead(packed)) as blocks:
                for module in checkpoint.modules:
                    # up to the None that ends the module's table
                    table = iter(partial(next, blocks), None)
                    writer.module(module, checkpoint, table)
            if exists:
                drop_checkpoint(cursor, name, dependents=drop_dependents)
            cursor.execute(
                sql.SQL("alter schema {} rename to {}").format(
                    sql.Identifier(building), sql.Identifier(name)
                )
            )
    except psycopg2.Error as error:
        raise CheckpointError(_refusal(error, name)) from None


def _refusal(error: psycopg2.Error, name: str) -> str:
    """Explain a server's error."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.DiskFull):
        advice = "Free space on the server's disk and load again."
    elif isinstance(error, errors.InsufficientPrivilege):
        advice = (
            "Let an owner of the database grant this role the right to create schemas."
        )
    elif isinstance(error, errors.OutOfMemory):
        advice = "Raise max_locks_per_transaction on the server and load again."
    elif isinstance(error, errors.DuplicateSchema):
        advice = "Someone created that schema meanwhile. Load again."
    elif isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        advice = "Check that the server runs and load again."
    else:
        advice = "Load again; if it stays, report it with this message."
    return (
        f"Loading into the schema {name} failed, and what was there before is "
        f"unchanged. The server said: {said}. {advice}"
    )


# --- Command line -------------------------------------------------------------


def _bar(label: str, bars: ExitStack) -> Callable[[int], Progress]:
    """Make a progress bar over bytes, shown on a terminal only, closed by `bars`."""

    def start(total: int) -> Progress:
        bar = tqdm(
            total=total,
            desc=label,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=None,
            leave=False,
        )
        bars.callback(bar.close)

        def step(count: int) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return step

    return start


def _printable(value: object) -> str:
    """Show a stored name without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _works_on(checkpoint: Checkpoint) -> str:
    """Say what a network reads and writes."""
    if checkpoint.scheduler is not None:
        height, width = sample_size(checkpoint.config)
        channels = checkpoint.config["in_channels"]
        return (
            f"images of {height} x {width} pixels and {channels} channel(s), "
            f"{checkpoint.scheduler['num_train_timesteps']:,} timesteps of a "
            f"{checkpoint.scheduler['_class_name']}"
        )
    if checkpoint.tokenizer is not None:
        return f"{len(checkpoint.tokenizer.vocabulary):,} tokens"
    return "no tokenizer: give token ids as prompts"


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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="load_checkpoint.py",
        description="Load a checkpoint into the database, in a schema of its own.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        help="a folder, or a name on the Hugging Face Hub (openai-community/gpt2)",
    )
    parser.add_argument(
        "--name", help="the checkpoint's schema (default: from SOURCE's last part)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--target", help="the target of profiles.yml (default: the one dbt uses)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the weights of linear layers and convolutions; float16 takes half "
        "the memory, and these layers round their inputs to it too",
    )
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="leave the tokenizer out"
    )
    parser.add_argument(
        "--if-changed",
        action="store_true",
        help="do nothing if the same checkpoint is loaded under that name",
    )
    parser.add_argument(
        "--drop-dependents",
        action="store_true",
        help="also drop what others built on the checkpoint that is replaced",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the checkpoints that are loaded"
    )
    options = parser.parse_args(arguments)
    if options.list == (options.source is not None):
        parser.error("give either SOURCE or --list")
    return options


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        CheckpointError: the checkpoint or the server is in the way.
        DatabaseError: there is no connection.

    """
    if options.list:
        with contextlib.closing(database.connect(options.target)) as connection:
            _print_list(connection)
        return
    name = schema_name(options.source, options.name)
    if name == database.settings(options.target)["schema"]:
        raise CheckpointError(
            f"The schema {name} is the one where dbt builds its models. Give another "
            "--name."
        )
    with (
        ExitStack() as bars,
        contextlib.closing(database.connect(options.target)) as connection,
    ):
        # before a download of gigabytes
        try:
            with connection, connection.cursor() as cursor:
                check_server(cursor)
                exists = check_schema(cursor, name)
        except psycopg2.Error as error:
            raise CheckpointError(_refusal(error, name)) from None
        folder = fetch(options.source, options.revision)
        started = time.monotonic()
        with open_checkpoint(
            folder, tokenizer=not options.no_tokenizer, progress=_bar("checking", bars)
        ) as checkpoint:
            if options.if_changed and exists:
                try:
                    with connection, connection.cursor() as cursor:
                        about = loaded_checkpoints(cursor).get(name, {})
                except psycopg2.Error as error:
                    raise CheckpointError(_refusal(error, name)) from None
                if about.get("digest") == digest(checkpoint, options.dtype):
                    print(f"{name} is loaded and unchanged.")
                    return
            load(
                connection,
                checkpoint,
                name,
                source=options.source,
                revision=options.revision,
                dtype=options.dtype,
                drop_dependents=options.drop_dependents,
                progress=_bar("loading", bars),
            )
            print(
                f"Loaded {name}: {checkpoint.family.name}, "
                f"{checkpoint.parameters:,} parameters, {_works_on(checkpoint)}; "
                f"{time.monotonic() - started:.1f} s."
            )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        run(parse_arguments(arguments))
    except (CheckpointError, database.DatabaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    database.run_command(main)
