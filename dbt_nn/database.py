"""The database that dbt and the scripts share, as profiles.yml names it.

`profiles.yml` (or `profiles.example.yml` before `make setup`) is the one place
that says where the database is, so that scripts and dbt cannot disagree. In a
project that has this one as a package it is that project's, with its profile.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jinja2
import psycopg2
import yaml

from dbt_nn.command_line import (
    IS_CLONE,
    PROJECT,
    ExpectedError,
    start_command,
    user_project,
)

PROFILE = "dbt_nn"
EXAMPLE = PROJECT / "profiles.example.yml"
MAX_NAME = 63  # bytes that PostgreSQL keeps of a name
# The embedded server's host before it is started: part of the message of dbt, too.
EXAMPLE_HOST = "/not started: run make server"
NOT_STARTED = EXAMPLE_HOST if IS_CLONE else "/not started: run dbt-nn server start"


class DatabaseError(ExpectedError):
    """Of the database, the profile or a run: says what to do."""


def profiles_path() -> Path:
    """The profiles.yml that dbt reads when it runs in the project's folder."""
    folder = os.environ.get("DBT_PROFILES_DIR")
    if folder:
        return Path(folder) / "profiles.yml"
    path = user_project() / "profiles.yml"
    home = Path.home() / ".dbt" / "profiles.yml"
    if user_project() == PROJECT or path.exists() or not home.exists():
        return path
    return home


def project_settings() -> dict[str, Any]:
    """What the dbt_project.yml of the user's project says."""
    path = user_project() / "dbt_project.yml"
    if not path.exists():
        raise DatabaseError(
            f"there is no dbt project in {path.parent}: change to the folder of one, "
            "or make one there by `dbt-nn init`"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatabaseError(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise DatabaseError(f"{path} holds no settings")
    return content


def profile_name() -> str:
    """The profile that the project asks for."""
    path, name = user_project() / "dbt_project.yml", project_settings().get("profile")
    if name is None:
        raise DatabaseError(f"{path} names no profile")
    return _render(os.environ.get("DBT_PROFILE") or name, path)


def example_profile(name: str) -> str:
    """The text of profiles.example.yml, as a profile of that name."""
    text = EXAMPLE.read_text(encoding="utf-8").replace(EXAMPLE_HOST, NOT_STARTED)
    return re.sub(rf"^{PROFILE}:", f"{name}:", text, flags=re.MULTILINE)


def _render(value: Any, where: Path) -> Any:
    """Render the Jinja in a profile's strings, of which we need `env_var`.

    By hand: to import dbt's own renderer takes two seconds, and all that
    `dbt-nn server url` does 0.2.
    """
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
    path, name = profiles_path(), profile_name()
    try:
        exists = path.exists()
        text = path.read_text(encoding="utf-8") if exists else example_profile(name)
        profile = yaml.safe_load(text)[name]
        outputs = profile["outputs"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DatabaseError(f"{path} holds no profile {name!r}: {error}") from None
    if target is None:
        # profiles.yml may pin a target; the variables are for scripts and dbt alike
        target = (
            os.environ.get("DBT_TARGET")
            or os.environ.get("DBT_NN_TARGET")
            or _render(profile.get("target", "default"), path)
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
    chosen = {
        **output,
        "target": target,
        "port": port,
        "threads": threads,
        "password": output.get("password", output.get("pass")) or "",
        "dbname": output.get("dbname") or output.get("database") or PROFILE,
        "schema": str(output.get("schema") or PROFILE),
    }
    for kind in ("schema", "dbname"):
        _check_name(kind, str(chosen[kind]), f"target {target!r} in {path}")
    return chosen


def _check_name(kind: str, name: str, where: str) -> None:
    """Refuse a name that dbt or PostgreSQL would make another of."""
    for character in ('"', "'", "\\", "%"):
        if character in name:
            raise DatabaseError(
                f"{where}: the {kind} {name} has the character {character} in its "
                "name, which dbt cannot quote: use another"
            )
    if len(name.encode()) > MAX_NAME:
        raise DatabaseError(
            f"{where}: the {kind} {name} has a name of {len(name.encode())} bytes, "
            f"and PostgreSQL would cut it after {MAX_NAME}: use a shorter one"
        )


def quoted(*names: str) -> str:
    """A qualified name as SQL writes it, such as "My-Schema"."prompts"."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


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
    if embedded and chosen["host"] in (EXAMPLE_HOST, NOT_STARTED):
        raise DatabaseError(
            f"the embedded server was never started here: run `{start_command()}`"
        )
    optional = {
        name: chosen[name]
        for name in ("sslmode", "sslcert", "sslkey", "sslrootcert", "keepalives_idle")
        if chosen.get(name)
    }
    if chosen.get("search_path"):
        optional["options"] = search_path_option(chosen["search_path"])
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
                "the embedded server does not answer: start it with "
                f"`{start_command()}`\n"
                f"({reason})"
            ) from None
        raise DatabaseError(
            f"no connection to {chosen['user']}@{chosen['host']}:{chosen['port']}"
            f"/{chosen['dbname']} (target {chosen['target']!r}; DBT_NN_HOST, "
            "DBT_NN_PORT, DBT_NN_USER, DBT_NN_PASSWORD and DBT_NN_DATABASE set it)\n"
            f"{reason}"
        ) from None
    if chosen.get("role"):
        _set_role(connection, str(chosen["role"]))
    connection.autocommit = autocommit
    return connection


def search_path_option(search_path: str) -> str:
    """The profile's `search_path` as libpq's `options`, as dbt gives it."""
    return "-c search_path=" + search_path.replace(" ", "\\ ")


def _set_role(connection: psycopg2.extensions.connection, role: str) -> None:
    """Take the profile's `role`, written as dbt writes it: as SQL."""
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"set role {role}")
    except psycopg2.Error as error:
        connection.close()
        raise DatabaseError(
            f"the profile's role: {role} cannot be taken: {str(error).strip()}"
        ) from None


def own_schema(results: str) -> str:
    """The schema of what commands make (`make gpt2`, `make ddpm`), beside results."""
    return f"{results}_command_line"
