"""docs/package.md, done as it says: a project that installs this one, from nothing.

Here the way of `dbt deps`; test_wheel.py goes the way of pip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from conftest import run_script
from dbt_nn import command_line, database
from runs import PROJECT, TWIN
from text_reference import Reference

DOCUMENT = PROJECT / "docs" / "package.md"
SCHEMA = "test_package"
# a block of code, and the file that the paragraph before names as its place
BLOCK = re.compile(r"(?:^`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
# what the reader fills in
HOLES = ("https://…/dbt_nn.git", "revision: …")

Shell = Callable[[str], str]


@pytest.fixture
def package(tmp_path: Path) -> tuple[str, str]:
    """URL and revision of a repository with what the working tree holds."""
    folder = tmp_path / "dbt_nn"
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
        + ["--exclude-standard"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (PROJECT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "--message=all"],
    ):
        subprocess.run([*git, *command], cwd=folder, check=True)
    command = [*git, "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    return folder.as_uri(), f"revision: {head.stdout.decode().strip()}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "letters"
    folder.mkdir()
    return folder


@pytest.fixture
def shell(database_environment: dict[str, str], project: Path, tmp_path: Path) -> Shell:
    """Run a block of shell code in the project's folder, where it has to succeed."""
    environment = {
        name: value
        for name, value in database_environment.items()
        if not name.startswith("DBT_") or name in ("DBT_NN_DATA", "DBT_USE_COLORS")
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),  # with no ~/.dbt
        "DBT_NN_SCHEMA": SCHEMA,
    }

    def run(code: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", code],
            cwd=project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


@pytest.mark.long
def test_package_from_nothing(
    connection: psycopg2.extensions.connection,
    package: tuple[str, str],
    project: Path,
    shell: Shell,
) -> None:
    """Each block of the document in its order, and transformers' completions."""
    cursor = connection.cursor()
    cursor.execute(f"drop schema if exists {SCHEMA}, {SCHEMA}_gpt2 cascade")
    output = ""
    _, _, text = DOCUMENT.read_text(encoding="utf-8").partition("\n## With `dbt deps`")
    for name, language, code in BLOCK.findall(text):
        if language == "sh":
            output += shell(code)
        else:
            path = project / name
            path.parent.mkdir(exist_ok=True)
            for hole, filling in zip(HOLES, package, strict=True):
                code = code.replace(hole, filling)
            path.write_text(code, encoding="utf-8")
    assert "WARNING" not in output
    builds = re.findall(r"Done\. PASS=\d+ .* TOTAL=(\d+)", output)
    cursor.execute(f"select prompt_id, letter from {SCHEMA}.letters order by prompt_id")
    letters = dict(cursor.fetchall())
    reference = Reference(TWIN)
    prompts = {1: "Elizabeth was happy, and", 2: "Mr. Darcy was silent, and"}
    for prompt_id, prompt in prompts.items():
        expected = reference.generate({"prompt": prompt}, max_new_tokens=16)
        assert letters[prompt_id] == prompt + reference.decode(expected)
        assert prompt in output  # of dbt show

    # few tests at first, and those of the layers where they are asked for
    count = len(list((PROJECT / "models" / "gpt2").rglob("*.sql")))
    hooks = 10
    assert count + 2 < int(builds[0]) < count + 2 + hooks + 5
    assert int(builds[1]) > count + 100
    cursor.execute(
        "select distinct schemaname from pg_tables where schemaname ~ %s",
        (f"^{SCHEMA}",),
    )
    assert {row[0] for row in cursor.fetchall()} == {SCHEMA, f"{SCHEMA}_gpt2"}
    cursor.execute(f"drop schema {SCHEMA}, {SCHEMA}_gpt2 cascade")


def install(folder: Path) -> None:
    """Make a project that has this one as its package."""
    (folder / "dbt_packages").mkdir(parents=True)
    (folder / "dbt_packages" / "dbt_nn").symlink_to(PROJECT)
    (folder / "dbt_project.yml").write_text("name: letters\nprofile: mine\n")


def test_commands_follow_the_project_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its profile, from the places where dbt looks for it."""
    for name in ("DBT_PROFILES_DIR", "DBT_NN_DATA"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "letters"
    install(folder)
    monkeypatch.chdir(folder)
    assert command_line.user_project() == folder
    assert database.profiles_path() == folder / "profiles.yml"
    assert database.settings()["target"] == "embedded"  # as `server.py start` writes

    home = tmp_path / "home" / ".dbt" / "profiles.yml"
    home.parent.mkdir(parents=True)
    output = {"type": "postgres", "host": "there", "user": "me", "schema": "results"}
    text = f"mine: {{target: dev, outputs: {{dev: {output}, prod: {output}}}}}"
    home.write_text(text)
    found = database.settings()
    assert (found["target"], found["host"], found["schema"]) == (
        "dev",
        "there",
        "results",
    )
    monkeypatch.setenv("DBT_TARGET", "prod")
    assert database.settings()["target"] == "prod"
    monkeypatch.delenv("DBT_TARGET")

    (folder / "profiles.yml").write_text(text.replace("there", "here"))
    assert database.settings()["host"] == "here"
    (folder / "dbt_project.yml").write_text("name: letters\nprofile: other\n")
    with pytest.raises(database.DatabaseError, match="holds no profile 'other'"):
        database.settings()

    # another dbt project is none of ours
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dbt_project.yml").write_text("name: x\nprofile: x\n")
    assert command_line.user_project() == PROJECT


def test_commands_say_what_to_type_in_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "letters")
    monkeypatch.chdir(tmp_path / "letters")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DBT_PROFILES_DIR")
    done = run_script("load_checkpoint.py", "--list")
    assert done.returncode == 1
    assert "python dbt_packages/dbt_nn/scripts/server.py start" in done.stderr
