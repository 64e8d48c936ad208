"""Writes a checkpoint into a schema of the database, in one transaction.

It is written under a passing name that takes its own at the end: whatever goes wrong,
an earlier checkpoint of that name stays as it was, and nobody ever sees half of one.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from dbt_nn.binary_copy import (
    DTYPES,
    Stream,
    ahead,
    chunks,
    module_blocks,
    stored_dtype,
    stored_dtypes,
)
from dbt_nn.checkpoint.files import MIB, CheckpointError
from dbt_nn.checkpoint.folder import Checkpoint, Progress
from dbt_nn.checkpoint.vocabulary import Tokenizer
from dbt_nn.networks.modules import Alias, Module, Norm
from dbt_nn.requirements import TIMEOUTS, inspect

# Two vectors of this size, a norm's row, fit a page as well.
PLAIN_NORM = 1000
MARK = "dbt_nn checkpoint: "
# Of the tables and their parameters' names. The macro checkpoint_format has the one
# that the models read; a checkpoint of another one has to be loaded again.
FORMAT = 2
TABLE_MARK = "dbt_nn: "
BUILDING = "dbt_nn_loading_"  # and the server process: while it is written
# How long to wait for tables in use when a checkpoint is replaced. One try is
# shorter than the server's deadlock_timeout (1 s), so that it is never the
# others' statement that is cancelled.
LOCK_TRY_MS = 500
LOCK_PATIENCE_S = 120


def check_server(connection: Connection) -> str:
    """Check the server as `server.py check` does; install pgvector if need be.

    Returns:
        The schema that holds pgvector's types, quoted.

    Raises:
        CheckpointError: the server will not do.

    """
    server = inspect(connection, create_extension=True)
    if server.failures:
        raise CheckpointError("The server will not do: " + "; ".join(server.failures))
    return server.vector_schema


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


class Writer:
    """Creates and fills the relations of a checkpoint in an open transaction."""

    def __init__(
        self, cursor: Cursor, schema: str, vector_schema: str, dtype: str | None
    ) -> None:
        """Write into `schema`, with the vector types of `vector_schema`, quoted.

        The linear modules' weights are of the type that stored_dtype() says.
        """
        self.cursor = cursor
        self.schema = schema
        self.vector = sql.SQL(f"{vector_schema}.vector")
        self.dtype = dtype
        self.weights = {
            name: sql.SQL(f"{vector_schema}.{kind}") for name, kind in DTYPES.items()
        }

    def table(
        self,
        name: str,
        columns: str,
        key: str | None,
        comment: str,
        blocks: Iterable[bytes],
        *,
        binary: bool,
        dtype: str = "float32",
    ) -> None:
        """Create a table, fill it with frozen rows, index and analyze it.

        Args:
            name: the table.
            columns: their definitions; `{vector}` stands for that type, `{weight}`
                for that of a linear module's weights.
            key: the primary key's columns, if any.
            comment: what the table holds.
            blocks: COPY's input.
            binary: whether that is COPY's binary format or its text format.
            dtype: of these weights, one of DTYPES.

        """
        table = sql.Identifier(self.schema, name)
        definitions = sql.SQL(columns).format(
            vector=self.vector, weight=self.weights[dtype]
        )
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
            dtype=stored_dtype(module, checkpoint, self.dtype),
        )

    def fixed(self, checkpoint: Checkpoint) -> None:
        """Create config, tensors and what else belongs to the family."""
        self.settings(
            "config",
            f"config.json of a {checkpoint.family.kind} network, a row per key",
            checkpoint.config,
        )
        if checkpoint.scheduler is not None:
            self.settings(
                "scheduler",
                "scheduler_config.json of the network, a row per key",
                checkpoint.scheduler,
            )
        self.tensors(checkpoint)
        if checkpoint.family.tokenizer is not None:
            is_unigram = checkpoint.tokenizer_kind == "unigram"
            self.tokenizer(checkpoint.tokenizer, has_scores=is_unigram)
        if checkpoint.tokenizer_kind == "wordpiece":
            self.word_pieces(checkpoint.tokenizer)
        if checkpoint.tokenizer_kind == "unigram":
            self.unigram(checkpoint.tokenizer)

    def settings(self, name: str, comment: str, values: dict[str, Any]) -> None:
        """Create a table of parameters and their values."""
        rows = ((_escaped(key), _escaped(json.dumps(v))) for key, v in values.items())
        self.table(
            name,
            "parameter text not null, value jsonb not null",
            "parameter",
            comment,
            _lines(rows),
            binary=False,
        )

    def tensors(self, checkpoint: Checkpoint) -> None:
        """Create the table that says which relations hold a tensor."""
        relations: dict[str, list[str]] = {}
        for module in checkpoint.modules:
            for name, _ in module.tensors():
                relations.setdefault(name, []).append(module.relation)
            if isinstance(module, Alias) and module.copy in checkpoint.tensors:
                relations[module.copy] = [module.relation]
        rows = (
            (
                name,
                "{" + ",".join(map(str, checkpoint.tensors[name].shape)) + "}",
                checkpoint.tensors[name].dtype,
                ", ".join(names),
            )
            for name, names in relations.items()
        )
        self.table(
            "tensors",
            "tensor text not null, shape int[] not null, dtype text not null, "
            "relation text not null",
            "tensor",
            "the tensors in the checkpoint's files, and the relations that hold them",
            _lines(rows),
            binary=False,
        )

    def tokenizer(self, texts: Tokenizer | None, *, has_scores: bool = False) -> None:
        """Create the vocabulary and the merges, empty without a tokenizer."""
        rows: Iterable[tuple[object, ...]] = (
            (token_id, f"\\\\x{token.hex()}", special)
            for token_id, token, special in (texts.vocabulary if texts else ())
        )
        if has_scores:
            scores = texts.scores if texts else {}
            rows = ((*row, scores.get(row[0], "\\N")) for row in rows)
        self.table(
            "vocabulary",
            "token_id int not null, token bytea not null, special boolean not null"
            + (", score double precision" if has_scores else ""),
            "token_id",
            "the tokenizer's tokens as bytes; special ones are matched whole",
            _lines(rows),
            binary=False,
        )
        self.table(
            "merges",
            "left_id int not null, right_id int not null, rank int not null, "
            "token_id int not null",
            "left_id, right_id",
            "the tokenizer's merges; the lowest rank comes first",
            _lines(texts.merges if texts else ()),
            binary=False,
        )
        if texts and texts.settings.get("ignore_merges"):
            # a word is looked up whole
            self.cursor.execute(
                sql.SQL("create index on {} using hash (token)").format(
                    sql.Identifier(self.schema, "vocabulary")
                )
            )

    def word_pieces(self, texts: Tokenizer | None) -> None:
        """Create the characters, and the indexes by which words find their pieces."""
        self.table(
            "characters",
            "first_codepoint int not null, last_codepoint int not null, "
            "replacement text, isolated boolean not null",
            "first_codepoint",
            "what the tokenizer's words have for a run of characters: NULL for the "
            "character itself; an isolated one is a word. Others stay themselves",
            _lines(
                (first, last, "\\N" if made is None else _escaped(made), isolated)
                for first, last, made, isolated in (texts.characters if texts else ())
            ),
            binary=False,
        )
        self._index_vocabulary()

    def unigram(self, texts: Tokenizer | None) -> None:
        """Create the replacements, and the indexes by which words find their pieces."""
        self.table(
            "replacements",
            'source text collate "C" not null, replacement text not null',
            "source",
            "what the tokenizer's normalizer has for a grapheme cluster or character",
            _lines(
                (_escaped(source), _escaped(made))
                for source, made in (texts.replacements if texts else ())
            ),
            binary=False,
        )
        self._index_vocabulary()

    def _index_vocabulary(self) -> None:
        for columns in ("token", "special, octet_length(token)"):
            self.cursor.execute(
                sql.SQL("create index on {} ({})").format(
                    sql.Identifier(self.schema, "vocabulary"), sql.SQL(columns)
                )
            )


def _escaped(value: object) -> str:
    """A value as COPY's text format has it."""
    text = str(value).replace("\\", "\\\\")
    for plain, escaped in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(plain, escaped)
    return text


def _lines(rows: Iterable[tuple[object, ...]]) -> list[bytes]:
    """Rows of escaped values in COPY's text format."""
    return ["".join("\t".join(map(str, row)) + "\n" for row in rows).encode()]


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


def digest(checkpoint: Checkpoint, dtype: str | None) -> str:
    """Name what is loaded: the checkpoint's content, and a dtype that changes it."""
    name = dtype_name(checkpoint, dtype)
    return checkpoint.digest + ("" if name == "float32" else f"-{name}")


def dtype_name(checkpoint: Checkpoint, dtype: str | None) -> str:
    """The type of all linear modules' weights, or `float16, float32`."""
    return ", ".join(sorted(stored_dtypes(checkpoint, dtype))) or "float32"


def _about(checkpoint: Checkpoint, dtype: str | None) -> dict[str, object]:
    """What a checkpoint's schema says of it in its comment."""
    return {
        "family": checkpoint.family.kind,
        "parameters": checkpoint.parameters,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.stored}),
        "tokens": len(checkpoint.tokenizer.vocabulary) if checkpoint.tokenizer else 0,
        "dtype": dtype_name(checkpoint, dtype),
        "digest": digest(checkpoint, dtype),
        "format": FORMAT,
        "loaded_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _prepare_session(cursor: Cursor) -> None:
    """Set what a load needs, until its transaction ends."""
    # names are qualified; nothing in a schema of others can stand in
    cursor.execute("set local search_path = pg_catalog")
    # a load takes as long as it takes; it waits for others by itself
    cursor.execute(
        "select set_config(name, '0', true) from pg_settings where name = any(%s)",
        [[*TIMEOUTS, "idle_in_transaction_session_timeout"]],
    )
    # to start a worker takes longer than it saves on an index of the keys
    cursor.execute("set local max_parallel_maintenance_workers = 0")
    # statistics of 3,000 rows do: plans depend on the tables' sizes alone
    cursor.execute("set local default_statistics_target = 10")


def load(
    connection: Connection,
    checkpoint: Checkpoint,
    name: str,
    *,
    source: str,
    revision: str | None = None,
    dtype: str | None = None,
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
        dtype: of the linear modules' weights, one of DTYPES; by default what
            stored_dtype() says.
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
    about = json.dumps(
        _about(checkpoint, dtype) | {"source": source, "revision": revision}
    )
    try:
        with connection, connection.cursor() as cursor:
            vector_schema = check_server(connection)
            _prepare_session(cursor)
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
                    sql.Identifier(building), sql.Literal(MARK + about)
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
        raise CheckpointError(refusal(error, name)) from None


def refusal(error: psycopg2.Error, name: str) -> str:
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
