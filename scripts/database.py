"""The database that dbt and the scripts share, as profiles.yml names it.

`profiles.yml` (or `profiles.example.yml` before `make setup`) is the one place
that says where the database is, so that scripts and dbt cannot disagree.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import psycopg2
import yaml

PROJECT = Path(__file__).resolve().parent.parent
PROFILE = "dbt_nn"
EXAMPLE = PROJECT / "profiles.example.yml"
NOT_STARTED = "not-started"  # the embedded host in profiles.example.yml


class DatabaseError(Exception):
    """An expected failure, whose message tells the user what to do."""


def profiles_path() -> Path:
    """The profiles.yml that dbt reads when it runs in the project's folder."""
    folder = os.environ.get("DBT_PROFILES_DIR")
    return (Path(folder) if folder else PROJECT) / "profiles.yml"


def _render(value: Any, where: Path) -> Any:
    """Render the Jinja in a profile's strings, of which we need `env_var`."""
    if isinstance(value, dict):
        return {key: _render(item, where) for key, item in value.items()}
    if not isinstance(value, str) or "{" not in value:
        return value

    def env_var(name: str, default: str | None = None) -> str:
        found = os.environ.get(name, default)
        if found is None:
            raise DatabaseError(f"{where} needs the environment variable {name}")
        return found

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["as_number"] = int
    environment.filters["as_text"] = str
    try:
        return environment.from_string(value).render(env_var=env_var)
    except (jinja2.TemplateError, ValueError) as error:
        raise DatabaseError(f"{where}: {value!r}: {error}") from None


def settings(target: str | None = None) -> dict[str, Any]:
    """Connection settings of a target (default: the one that dbt would use).

    Returns target, host, port, user, password, dbname, schema, threads and
    whatever else the profile gives (sslmode …).
    """
    path = profiles_path()
    if not path.exists():
        path = EXAMPLE
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))[PROFILE]
        outputs = profile["outputs"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DatabaseError(f"{path} holds no profile {PROFILE!r}: {error}") from None
    if target is None:
        # profiles.yml may pin a target; the variable is for scripts and dbt alike
        target = os.environ.get("DBT_NN_TARGET") or _render(
            profile.get("target", "embedded"), path
        )
    if target not in outputs:
        raise DatabaseError(
            f"no target {target!r} in {path}: it has {', '.join(outputs)}"
        )
    output = _render(outputs[target], path)
    try:
        port = int(output.get("port", 5432))
        threads = int(output.get("threads", 1))
        if not 0 < port < 65536:
            raise ValueError
    except (TypeError, ValueError):
        raise DatabaseError(
            f"target {target!r} in {path}: port and threads must be numbers above zero"
        ) from None
    return {
        **output,
        "target": target,
        "port": port,
        "threads": threads,
        "password": output.get("password", output.get("pass")) or "",
        "dbname": output.get("dbname") or output.get("database") or PROFILE,
        "schema": output.get("schema") or PROFILE,
    }


def connect(
    target: str | None = None,
    *,
    autocommit: bool = False,
    application_name: str = "dbt_nn",
) -> psycopg2.extensions.connection:
    """Open a psycopg2 connection to the database that dbt uses.

    Raises DatabaseError, with the command that helps, if there is none.
    """
    chosen = settings(target)
    embedded = chosen["target"] == "embedded"
    if embedded and chosen["host"] == NOT_STARTED:
        raise DatabaseError(
            "the embedded server was never started here: run `make server`"
        )
    optional = {
        name: chosen[name]
        for name in ("sslmode", "sslcert", "sslkey", "sslrootcert")
        if chosen.get(name)
    }
    try:
        connection = psycopg2.connect(
            host=chosen["host"],
            port=chosen["port"],
            user=chosen["user"],
            password=chosen["password"] or None,
            dbname=chosen["dbname"],
            connect_timeout=int(chosen.get("connect_timeout", 10)),
            application_name=application_name,
            client_encoding="UTF8",
            **optional,
        )
    except (psycopg2.OperationalError, UnicodeDecodeError) as error:
        reason = str(error).strip()
        if embedded:
            raise DatabaseError(
                "the embedded server does not answer: start it with `make server`\n"
                f"({reason})"
            ) from None
        raise DatabaseError(
            f"no connection to {chosen['user']}@{chosen['host']}:{chosen['port']}"
            f"/{chosen['dbname']} (target {chosen['target']!r}; DBT_NN_HOST, "
            "DBT_NN_PORT, DBT_NN_USER, DBT_NN_PASSWORD and DBT_NN_DATABASE set it)\n"
            f"{reason}"
        ) from None
    connection.autocommit = autocommit
    return connection


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's main: expected failures end in one message, no traceback."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except DatabaseError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
