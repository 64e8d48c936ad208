"""Find the texts that mean what you ask: the short way to `dbt run --select minilm`.

    dbt-nn search "a proposal is refused"
    dbt-nn search "cannot log in" --relation public.tickets --key id --text body -n 5

embeds the texts of a relation, new and changed ones only, and shows those nearest to
the query, with their cosine distances: 0 is the same direction. Without a relation
the texts are paragraphs of Pride and Prejudice. All is in schemas of its own,
dbt_nn_command_line and dbt_nn_command_line_minilm if the profile's is dbt_nn.
Without an argument the environment's QUERY is taken.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import textwrap
from contextlib import closing
from typing import Any

import click
from psycopg2 import sql
from psycopg2.extras import execute_values

from dbt_nn.cli import checkpoint_option, command
from dbt_nn.command_line import PROJECT
from dbt_nn.database import DatabaseError, connect, quoted, settings
from dbt_nn.runner import dbt, printable, use_own_schema, write_options

NETWORK = "minilm"
BOOK = "PRIDE AND PREJUDICE"
NEXT_BOOK = "SENSE AND SENSIBILITY"
# Two proposals are refused in them, and they are embedded in a minute.
CHAPTERS = (19, 20, 21, 22, 34)
PARAGRAPHS = "paragraphs"


def paragraphs() -> list[tuple[int, str, str]]:
    """(id, chapter, text) of the chapters."""
    path = PROJECT / "data" / "austen.txt.gz"
    if not path.is_file():
        raise DatabaseError("no novel is installed here: name your texts by --relation")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    book = text[text.index(BOOK) : text.index(NEXT_BOOK)]
    rows = []
    parts = re.split(r"\n\s*(Chapter \d+)\s*\n", book)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        if int(heading.split()[1]) not in CHAPTERS:
            continue
        for paragraph in re.split(r"\n\s*\n", body.strip()):
            rows.append((len(rows) + 1, heading, " ".join(paragraph.split())))
    return rows


def write_paragraphs(schema: str) -> None:
    """Make the table of paragraphs, unless it is there."""
    table = sql.Identifier(schema, PARAGRAPHS)
    rows = paragraphs()
    with closing(connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "create table if not exists {} "
                "(id integer primary key, chapter text, text text)"
            ).format(table)
        )
        cursor.execute(sql.SQL("select * from {} order by id").format(table))
        if cursor.fetchall() == rows:
            return
        cursor.execute(sql.SQL("delete from {}").format(table))
        insert = sql.SQL("insert into {} values %s").format(table)
        execute_values(cursor, insert.as_string(cursor), rows)


def nearest(
    schema: str, relation: str, columns: dict[str, str], query: str, n: int
) -> list[tuple[Any, ...]]:
    """The rows nearest to the query: (key, distance, text), the nearest first."""
    statement = sql.SQL(
        """
        select found.key, found.distance, texts.{text}::text
        from (
            select embeddings.key, embeddings.embedding <=> query.vector as distance
            from (select {embed}(%s) as vector offset 0) as query
            cross join {embeddings} as embeddings
            where embeddings.embedding is not null
            order by distance, embeddings.key
            limit %s
        ) as found
        inner join {relation} as texts on texts.{key} = found.key
        order by found.distance, found.key
        """
    ).format(
        text=sql.Identifier(columns["text"]),
        key=sql.Identifier(columns["key"]),
        embed=sql.Identifier(schema, f"{NETWORK}_embed"),
        embeddings=sql.Identifier(schema, f"{NETWORK}_embeddings"),
        relation=sql.SQL(relation),
    )
    with closing(connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, [query, n])
        return cursor.fetchall()


def sessions() -> int:
    """How many sessions embed: all cores of a server here, else dbt's threads."""
    chosen = settings()
    cores = os.cpu_count() if chosen["target"] == "embedded" else None
    return max(int(chosen["threads"]), cores or 1)


def is_embedded(schema: str) -> bool:
    """Whether each paragraph has its vector, so that dbt has nothing to do."""
    with closing(connect()) as connection, connection, connection.cursor() as cursor:
        names = [
            quoted(schema, f"{NETWORK}_{name}") for name in ("embeddings", "texts")
        ]
        cursor.execute(
            "select to_regclass(%s) is null or to_regclass(%s) is null", names
        )
        if cursor.fetchone()[0]:
            return False
        cursor.execute(
            sql.SQL(
                "select count(*) = (select count(*) from {}) and count(*) = ("
                "select count(*) from {} where finished_at is not null) from {}"
            ).format(
                sql.Identifier(schema, PARAGRAPHS),
                sql.Identifier(schema, f"{NETWORK}_texts"),
                sql.Identifier(schema, f"{NETWORK}_embeddings"),
            )
        )
        return cursor.fetchone()[0]


def show(rows: list[tuple[Any, ...]]) -> None:
    """Print them: distance, key and text, the lines of a text below each other."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    keys = max((len(str(key)) for key, _, _ in rows), default=0)
    print(f"{'distance':>8}  {'key':>{keys}}  text")
    for key, distance, text in rows:
        lines = textwrap.wrap(printable(" ".join(text.split())), width - keys - 14)
        print(f"{distance:8.4f}  {key!s:>{keys}}  {lines[0] if lines else ''}")
        for line in lines[1:]:
            print(" " * (keys + 12) + line)


@command(__doc__)
@click.argument("query", required=False)
@click.option("--relation", help="The texts: schema.table (default: paragraphs).")
@click.option("--key", default="id", help="Its column that names a text (id).")
@click.option("--text", default="text", help="Its column of texts (text).")
@click.option("-n", "n", type=click.IntRange(min=1), default=5, help="How many (5).")
@checkpoint_option
def main(
    query: str | None,
    relation: str | None,
    key: str,
    text: str,
    n: int,
    checkpoint: str | None,
) -> int:
    """Carry out the command line."""
    query = os.environ.get("QUERY") if query is None else query
    if query is None:
        raise click.UsageError('no query: dbt-nn search "a proposal is refused"')
    if relation and "." not in relation:
        raise click.UsageError(f"give --relation with its schema: public.{relation}")
    schema, variables = use_own_schema(NETWORK, checkpoint)
    write_options(schema, NETWORK, {})
    if not relation:
        write_paragraphs(schema)
    texts = relation or quoted(schema, PARAGRAPHS)
    variables |= {
        f"{NETWORK}_texts": texts,
        f"{NETWORK}_key": key,
        f"{NETWORK}_text": text,
    }
    if (relation or not is_embedded(schema)) and dbt(
        "run", "--select", NETWORK, "--threads", str(sessions()), variables=variables
    ):
        raise DatabaseError("the texts are not embedded, see above")
    show(nearest(schema, texts, {"key": key, "text": text}, query, n))
    return 0
