"""README.md and docs/, as a reader meets them.

Every block of code is run in reading order: README first, then the pages in the
order in which it names them, in one fresh copy of the project with a server of its
own. A page is read in one terminal, so what a block exports is there for the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg2
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from chat_templates import SMOLLM2
from dbt_nn.database import PROJECT
from llama_checkpoints import save_with_tokenizer
from runs import TWIN
from small_networks import add_chat, save_encoder, save_image, save_text

README = "README.md"
OVERVIEW = "models/overview.md"
MAX_README_WORDS = 1500

# Lines of `sh` and whole blocks of `sql` that begin with these are not run, and why.
EXCEPTIONS = {
    "make test": "it runs this file",
    "make bench": "twenty minutes; test_bench.py runs all its parts, smaller",
    "python scripts/bench.py": "minutes, and of a clone; test_bench.py runs it",
    "make demo": "the fixture has run it, and its output is what the pages show",
    "export DBT_NN_TARGET=server": "test_own_server.py runs all on such a server",
    "create extension": "an administrator's; test_roles.py runs it",
    "grant usage on schema extensions": "test_roles.py runs it",
    "dbt-nn spark run --master": "needs a cluster; test_spark_cluster.py has one",
    "spark-submit": "the same",
    "def model": "needs Databricks, and was not tried there, as the page says",
}
# What a reader has and a test has not: a folder of that name in its place, which
# the commands take as well.
STAND_INS = {
    "openai-community/gpt2": lambda folder: shutil.copytree(TWIN, folder),
    "FOLDER": lambda folder: save_text(folder, seed=1),
    "HuggingFaceTB/SmolLM2-135M-Instruct": lambda folder: add_chat(
        save_with_tokenizer(folder), SMOLLM2
    ),
    "BAAI/bge-small-en": lambda folder: save_encoder(folder, ["a text"], seed=1),
    "gnokit/ddpm-butterflies-64": lambda folder: save_image(folder, seed=1),
}
# A project of its own, which test_package.py makes from its blocks.
PACKAGE = "docs/package.md"
TIMEOUT_S = 900

# dbt, with a target folder for each --vars: it parses the whole project again where
# they are not those of the last time in that folder.
DBT = """#!/bin/sh
folder=$(printf '%s' "$*" | sed -n 's/.*--vars //p' | cksum | cut -d ' ' -f 1)
DBT_TARGET_PATH=${DBT_TARGET_PATH:-target/$folder}
export DBT_TARGET_PATH
exec "$(dirname "$0")/python" -c 'from dbt.cli.main import cli; cli()' "$@"
"""


# --- What the pages say -------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of code, and the `sh` block of the page before it."""

    page: str
    line: int
    language: str
    text: str
    before: Block | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def tokens(page: str) -> list[Token]:
    text = (PROJECT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


@cache
def files() -> frozenset[str]:
    """The files of the project: those that git has, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = listed.stdout.split("\0")
    return frozenset(name for name in names if (PROJECT / name).is_file())


def links(page: str) -> list[str]:
    """The targets of links and pictures."""
    found: list[str] = []
    for token in tokens(page):
        for child in (token, *(token.children or [])):
            if child.type.startswith("html"):
                found += re.findall(r'\b(?:href|src)="(.*?)"', child.content)
            found += [str(child.attrs[k]) for k in ("href", "src") if k in child.attrs]
    return found


def in_project(page: str, target: str) -> str:
    """The path of a link's file from the project's folder."""
    path = unquote(target.partition("#")[0])
    return os.path.normpath(Path(page).parent / path) if path else page


def pages() -> list[str]:
    """README and docs/ in reading order."""
    named = [in_project(README, target) for target in links(README)]
    return [README, *dict.fromkeys(p for p in named if re.match(r"docs/.*\.md$", p))]


def blocks(page: str) -> list[Block]:
    found: list[Block] = []
    command = None
    for token in tokens(page):
        if token.type == "fence":
            assert token.map is not None
            block = Block(
                page, token.map[0] + 1, token.info.strip(), token.content, command
            )
            found.append(block)
            if block.language == "sh":
                command = block
    return found


BLOCKS = [block for page in pages() if page != PACKAGE for block in blocks(page)]


def heading_anchors(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for before, token in zip([None, *tokens(page)], tokens(page), strict=False):
        if before is not None and before.type == "heading_open":
            text = "".join(
                child.content
                for child in token.children or []
                if child.type in ("text", "code_inline")
            )
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = sum(re.sub(r"-\d+$", "", other) == slug for other in found)
            found.append(f"{slug}-{count}" if count else slug)
    return set(found)


# --- Tests of the text --------------------------------------------------------


def test_every_page_is_linked() -> None:
    """From README, so that it has a place in the reading order."""
    written = {name for name in files() if re.match(r"docs/.*\.md$", name)}
    assert written <= set(pages())


@pytest.mark.parametrize("page", sorted(n for n in files() if n.endswith(".md")))
def test_links(page: str) -> None:
    """Files are in the project, anchors in their pages."""
    folders = {str(parent) for name in files() for parent in Path(name).parents}
    missing = []
    for target in links(page):
        # another site, or a view of the docs site
        if re.match(r"\w+:|#!/", target):
            continue
        # the docs site's first page has its pictures beside it
        if page == OVERVIEW and target in files():
            continue
        path, anchor = in_project(page, target), target.partition("#")[2]
        if path not in files() | folders or (
            anchor and anchor not in heading_anchors(path)
        ):
            missing.append(target)
    assert missing == []


def test_readme_is_short() -> None:
    assert len((PROJECT / README).read_text(encoding="utf-8").split()) <= (
        MAX_README_WORDS
    )


def test_languages() -> None:
    """A block says what it is; else nothing runs it."""
    assert {str(b): b.language for b in BLOCKS if b.language not in LANGUAGES} == {}


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "text" and "/  " in b.text], ids=str
)
def test_tree(block: Block) -> None:
    """What an annotated tree of the project names is there."""
    folders: list[tuple[int, Path]] = []  # of the line, by how far they are indented
    count = 0
    for line in block.text.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, path) for depth, path in folders if depth < indent]
        folder = folders[-1][1] if folders else Path()
        for name in re.split(r"\s{2,}", line.strip())[0].split(", "):
            if name.endswith(("/", ".sql", ".csv")):
                assert (PROJECT / folder / name).exists(), folder / name
                folders.append((indent, folder / name))
                count += 1
    assert count > 5


# --- The reader ---------------------------------------------------------------


@dataclass
class Reader:
    """Someone with a fresh clone, and the terminal in which a page is read."""

    folder: Path
    environment: dict[str, str]
    demo: str = ""
    outputs: dict[Block, str] = field(default_factory=dict)

    def run(self, script: str, page: str) -> str:
        """Run a script in the page's terminal; what it printed."""
        state = self.folder.parent / f"terminal-{Path(page).stem}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail"],
            input=f"if [ -e {state} ]; then . {state}; fi\n{script}\n"
            f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} >{state}\n",
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        output = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
        if done.returncode != 0:
            pytest.fail(
                f"{page}: ended with {done.returncode}:\n{script}\n{output[-6000:]}",
                pytrace=False,
            )
        return output

    def connect(self) -> psycopg2.extensions.connection:
        url = self.run("python scripts/server.py url", "elsewhere").strip()
        connection = psycopg2.connect(url)
        connection.autocommit = True
        return connection


def make_environment(folder: Path) -> None:
    """A .venv of the copy's own, with the packages of the one that runs the tests."""
    venv.create(folder / ".venv", symlinks=True, with_pip=False)
    variables = {"base": str(folder / ".venv"), "platbase": str(folder / ".venv")}
    own = Path(sysconfig.get_path("purelib", vars=variables))
    shutil.rmtree(own)
    own.symlink_to(sysconfig.get_path("purelib"))
    scripts = folder / ".venv" / "bin"
    for script in Path(sysconfig.get_path("scripts")).iterdir():
        if not (scripts / script.name).exists():
            (scripts / script.name).symlink_to(script)
    (scripts / "dbt").unlink()
    (scripts / "dbt").write_text(DBT, encoding="utf-8")
    (scripts / "dbt").chmod(0o755)
    # so that scripts/setup.sh has nothing to do
    for kind, lock in (("runtime", "requirements"), ("test", "requirements-test")):
        subprocess.run(
            ["sh", "-c", f"cksum <{lock}.lock >.venv/.installed-{kind}"],
            cwd=folder,
            check=True,
        )


@pytest.fixture(scope="module")
def reader(isolated_environment: Path) -> Iterator[Reader]:
    """A copy of the project after `make demo`."""
    folder = (isolated_environment / "clone").resolve()
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name)
    make_environment(folder)
    for name, make in STAND_INS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        make(folder / name)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DBT_", "VIRTUAL_ENV"))
    }
    opened = Reader(
        folder,
        kept | {"DBT_NN_DATA": str(folder / ".postgres"), "DBT_USE_COLORS": "false"},
    )
    try:
        opened.demo = opened.run("make demo", "demo")
        # README says how dbt gets on the path; who reads on has done that
        for page in (*pages()[1:], "elsewhere"):
            opened.run("source .venv/bin/activate", page)
        yield opened
    finally:
        subprocess.run(
            [folder / ".venv/bin/python", "scripts/server.py", "delete"],
            cwd=folder,
            env=opened.environment,
            check=False,
            timeout=60,
        )


def shape(line: str) -> str:
    """A line of output without its figures, and without what the network wrote."""
    line = re.sub(r'".*"', '""', " ".join(line.split()))
    line = re.sub(r"(?<=\S)\|(?=\S).*", "|", line)  # a prompt|and what comes after it
    return re.sub(r"\d[\d,.:]*(e[-+]?\d+)?", "0", line)


def is_prose(line: str) -> bool:
    """Generated text, which another machine may continue in another way."""
    return not re.search(r"[\d|{}_=<>]|…", line)


def is_exception(line: str) -> bool:
    return any(re.match(rf"{name}\b", line) for name in EXCEPTIONS)


def run_sh(reader: Reader, block: Block) -> None:
    lines = []
    for line in block.text.splitlines():
        lines.append(f"# {line}" if is_exception(line) else line)
        if line.startswith("make demo"):
            reader.outputs[block] = reader.demo
    if any(not re.match(r"\s*(#|$)", line) for line in lines):
        output = reader.run("\n".join(lines), block.page)
        reader.outputs[block] = reader.outputs.get(block, "") + output


def run_sql(reader: Reader, block: Block) -> None:
    """In psql's way and in that of `dbt show`: the same columns, and rows."""
    if "{{" in block.text:  # a model that the page shows
        sources = [p.read_text("utf-8") for p in reader.folder.rglob("models/**/*.sql")]
        assert any(block.text.strip() in source for source in sources)
        return
    if is_exception(block.text):
        return
    assert not re.search(r'["$`!\\]', block.text), "a shell reads it in double quotes"
    with contextlib.closing(reader.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute(block.text)
        assert cursor.description is not None
        columns = [column.name for column in cursor.description]
        rows = cursor.fetchall()
    assert rows
    if block.before in reader.outputs:  # for the block that shows what comes out
        lines = [" ".join(map(str, row)) for row in [columns, *rows]]
        reader.outputs[block.before] += "\n" + "\n".join(lines)
    output = reader.run(
        f'dbt --quiet show --output json --inline "{block.text}"', block.page
    )
    shown: list[dict[str, Any]] = json.loads(output[output.index("{") :])["show"]
    assert [list(row) for row in shown] == [columns] * min(5, len(rows))


def check_output(reader: Reader, block: Block) -> None:
    """Each line of what a page shows is like one that its command or query gave."""
    if block.before is None or block.before not in reader.outputs:
        return
    printed = {shape(line) for line in reader.outputs[block.before].splitlines()}
    missing = [
        line
        for line in block.text.splitlines()
        if line.strip() != "…" and not is_prose(line) and shape(line) not in printed
    ]
    assert missing == [], "\n".join(sorted(printed))


def run_python(reader: Reader, block: Block) -> None:
    if not is_exception(block.text):
        reader.run(f"python - <<'END'\n{block.text}\nEND", block.page)


LANGUAGES = {
    "sh": run_sh,
    "sql": run_sql,
    "python": run_python,
    "text": check_output,
    "json": check_output,
}


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(reader: Reader, block: Block) -> None:
    LANGUAGES[block.language](reader, block)
