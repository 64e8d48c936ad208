"""What a server must have, and what it should have.

The macro check_server() asks for the same before a run, in the same words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import psycopg2

EXTENSION = "vector"
MIN_SERVER = 160000
MIN_PGVECTOR = (0, 7)
MIB = 1 << 20
GIB = 1 << 30
# 124M float32 weights, two rows of 768 a page, with room for activations
WANTED_SHARED_BUFFERS = GIB
WANTED_WORK_MEM = 64 * MIB
TIMEOUTS = {  # and what they would stop
    "statement_timeout": "a layer of a long batch is one statement",
    "transaction_timeout": "a step of a long batch is one transaction",
    "lock_timeout": "two runs that start at once wait for each other",
}


@dataclass
class Server:
    """A server as a session of ours sees it; names are quoted as SQL needs them."""

    version: int  # 160002
    version_text: str
    pgvector: str | None  # in the database
    pgvector_available: str | None  # on the server
    vector_schema: str | None = None
    vector_schema_usable: bool = True
    vector_on_path: bool = True
    search_path: str = "public"
    encoding: str = "UTF8"
    is_standby: bool = False
    is_read_only: bool = False
    may_create: bool = True
    database: str = "dbt_nn"
    role: str = "dbt_nn"  # whose rights count: of the profile's `role` if it has one
    login: str = "dbt_nn"  # whose settings count
    jit: str = "off"
    shared_buffers: tuple[int, str] = (2 * GIB, "2GB")
    work_mem: tuple[int, str] = (256 * MIB, "256MB")
    timeouts: dict[str, str] = field(default_factory=dict)  # those that are set
    is_shared: bool = False  # its sessions take turns with its processes
    why_not_created: str = ""  # the error of `create extension`

    @property
    def facts(self) -> list[str]:
        """What the server is, in lines for the user."""
        facts = [f"PostgreSQL {self.version_text}"]
        if self.pgvector is not None:
            facts.append(f"pgvector {self.pgvector} in the schema {self.vector_schema}")
        facts.append(f"encoding {self.encoding}")
        facts.append(
            f"shared_buffers {self.shared_buffers[1]}, work_mem {self.work_mem[1]}, "
            f"jit {self.jit}"
        )
        return facts

    @property
    def failures(self) -> list[str]:
        """What is in the way, each with what to do."""
        failures = []
        if self.version < MIN_SERVER:
            failures.append(
                f"PostgreSQL {self.version_text} is too old: {MIN_SERVER // 10_000} or "
                "newer is needed"
            )
        failures += self._pgvector_failures()
        if self.encoding != "UTF8":
            failures.append(
                f"the encoding of the database {self.database} is {self.encoding}: "
                "use one that was created with encoding 'UTF8'"
            )
        if self.is_standby:
            failures.append(
                "the server is a standby, which is read-only: use its primary"
            )
        elif self.is_read_only:
            failures.append(
                f"default_transaction_read_only is on for the role {self.login}: run "
                f"`alter role {self.login} set default_transaction_read_only = off;`"
            )
        if self.is_shared:
            failures.append(
                "sessions take turns with the server's processes, as PgBouncer has it "
                "in transaction mode, so that locks and settings are lost: connect to "
                "the server itself, or to a pool in session mode"
            )
        if not self.may_create:
            failures.append(
                f"{self.role} may not create schemas: run "
                f"`grant create on database {self.database} to {self.role};` as its "
                "owner"
            )
        return failures

    def _pgvector_failures(self) -> list[str]:
        wanted = ".".join(map(str, MIN_PGVECTOR))
        available = self.pgvector_available
        if self.pgvector is None and available is None:
            return [
                f"pgvector is missing: install {wanted} or newer on the server "
                "(package postgresql-NN-pgvector on Debian), then "
                f"`create extension {EXTENSION};`"
            ]
        if self.pgvector is None:
            return [
                "pgvector is on the server but not in this database: run "
                f"`create extension {EXTENSION};` there as its owner or a superuser"
                + (f" ({self.why_not_created})" if self.why_not_created else "")
            ]
        if version_tuple(self.pgvector) < MIN_PGVECTOR:
            cure = "install a newer pgvector on the server"
            if available and version_tuple(available) >= MIN_PGVECTOR:
                cure = f"`alter extension {EXTENSION} update;` brings {available}"
            return [
                f"pgvector {self.pgvector} is too old: {wanted} or newer is needed; "
                + cure
            ]
        schema = self.vector_schema
        if not self.vector_schema_usable:
            return [
                f"{self.role} may not use the schema {schema}, which holds pgvector: "
                f"run `grant usage on schema {schema} to {self.role};` as its owner"
            ]
        if not self.vector_on_path:
            path = f"{self.search_path}, {schema}" if self.search_path else schema
            return [
                f"pgvector is in the schema {schema}, which the search_path of "
                f"{self.login} lacks: run `alter role {self.login} set search_path = "
                f"{path};`, or set search_path in the profile "
                f"(DBT_NN_SEARCH_PATH='public, {schema}')"
            ]
        return []

    @property
    def warnings(self) -> list[str]:
        """What costs time or may stop a run, each with what to do."""
        warnings = []
        if self.jit == "on":
            warnings.append(
                "jit is on and costs seconds a step: "
                f"`alter role {self.login} set jit = off;`"
            )
        if self.work_mem[0] < WANTED_WORK_MEM:
            warnings.append(
                f"work_mem is {self.work_mem[1]}: "
                f"`alter role {self.login} set work_mem = '256MB';`"
            )
        if self.shared_buffers[0] < WANTED_SHARED_BUFFERS:
            warnings.append(
                f"shared_buffers is {self.shared_buffers[1]}, too little to hold "
                "GPT-2's weights (1 GB): as a superuser "
                "`alter system set shared_buffers = '2GB';`, then restart the server; "
                "where a provider runs it, its settings or a larger machine do it"
            )
        for name, value in self.timeouts.items():
            warnings.append(
                f"{name} is {value}, and {TIMEOUTS[name]}, which may take longer: "
                f"`alter role {self.login} set {name} = 0;`"
            )
        return warnings


def version_tuple(text: str) -> tuple[int, ...]:
    """The numbers of a version: 0.8.6 is (0, 8, 6)."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def inspect(
    connection: psycopg2.extensions.connection, *, create_extension: bool = False
) -> Server:
    """Ask a server what it is.

    Args:
        connection: in a transaction or not; it stays as it is.
        create_extension: make pgvector's if it is not in the database, but could be.

    """
    cursor = connection.cursor()
    reason = ""
    if create_extension:
        reason = _create_extension(connection)
    cursor.execute(
        """
        select
            extension.extversion,
            known.default_version,
            quote_ident(namespace.nspname),
            coalesce(has_schema_privilege(namespace.oid, 'usage'), false),
            coalesce(namespace.nspname = any(current_schemas(true)), false),
            current_setting('search_path'),
            current_setting('server_encoding'),
            pg_is_in_recovery(),
            current_setting('default_transaction_read_only')::boolean,
            has_database_privilege(current_database(), 'create'),
            quote_ident(current_database()),
            quote_ident(current_user),
            quote_ident(session_user),
            current_setting('jit'),
            pg_size_bytes(current_setting('shared_buffers')),
            current_setting('shared_buffers'),
            pg_size_bytes(current_setting('work_mem')),
            current_setting('work_mem'),
            array(
                select array[name, current_setting(name)] from pg_settings
                where name = any(%s) and setting <> '0' order by name
            )
        from (values (%s)) as wanted (name)
        left join pg_extension as extension on extension.extname = wanted.name
        left join pg_namespace as namespace on namespace.oid = extension.extnamespace
        left join pg_available_extensions as known on known.name = wanted.name
        """,
        [list(TIMEOUTS), EXTENSION],
    )
    row = cursor.fetchone()
    return Server(
        connection.server_version,
        str(connection.get_parameter_status("server_version")),
        *row[:14],
        shared_buffers=row[14:16],
        work_mem=row[16:18],
        timeouts=dict(row[18]),
        why_not_created=reason,
    )


def is_shared(
    one: psycopg2.extensions.connection, other: psycopg2.extensions.connection
) -> bool:
    """Whether two open sessions are in one server process, or will be soon.

    Args:
        one: with autocommit.
        other: likewise. A pool in transaction mode gives each transaction the process
            that became free last; others that use the pool may come between.

    """

    def process(connection: psycopg2.extensions.connection) -> int:
        cursor = connection.cursor()
        cursor.execute("select pg_backend_pid()")
        return cursor.fetchone()[0]

    return any(process(one) == process(other) for _ in range(5))


def _create_extension(connection: psycopg2.extensions.connection) -> str:
    """Make pgvector's extension if it can be made; returns why not.

    In `public`: a schema of the role's name, where its results may be, would come
    first, and to drop that one would take all weights along.
    """
    connection.notices.clear()
    connection.cursor().execute(
        f"""
        do $body$
        begin
            if exists (
                select from pg_available_extensions
                where name = '{EXTENSION}' and installed_version is null
            ) then
                create extension if not exists {EXTENSION} schema public;
            end if;
        exception when others then
            raise warning '%', sqlerrm;
        end
        $body$
        """
    )
    if not connection.notices:
        return ""
    return connection.notices[-1].strip().splitlines()[0].partition(":")[2].strip()
