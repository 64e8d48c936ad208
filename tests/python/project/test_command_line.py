"""Every command of scripts/: its help, and its end where something is missing."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from conftest import run_script
from dbt_nn import cli, complete, runner
from dbt_nn.database import EXAMPLE, PROJECT

SCRIPTS = PROJECT / "scripts"
COMMANDS = sorted(
    path.name
    for path in SCRIPTS.glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text("utf-8")
)
TEST_PACKAGES = ("torch", "diffusers", "transformers", "tokenizers")
TWIN = PROJECT / "checkpoints" / "gpt2-twin"


def call(
    script: str, *arguments: str, python: tuple[str, ...] = (sys.executable,),
    folder: Path, **environment: str,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Call a script from a folder that is not the project's."""
    done = subprocess.run(
        [*python, str(SCRIPTS / script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )
    assert "Traceback" not in done.stdout + done.stderr, script
    assert "Exception ignored" not in done.stderr, script
    return done


@pytest.fixture
def without_test_packages(tmp_path: Path) -> str:
    """PYTHONPATH of an environment that lacks them, as `make setup` leaves it."""
    for name in TEST_PACKAGES:
        (tmp_path / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('no {name}', name='{name}')\n"
        )
    return str(tmp_path)


def test_commands() -> None:
    assert {"demo.py", "complete.py", "draw.py", "server.py", "bench.py"} < {*COMMANDS}


def test_help(tmp_path: Path, without_test_packages: str) -> None:
    """It helps and does nothing else, with and without packages, in ASCII."""
    base = getattr(sys, "_base_executable", sys.executable)
    pythons = {
        "usual": (sys.executable,),
        "another Python": (base, "-S", "-E", "-s"),
    }
    for script in COMMANDS:
        [first] = re.findall(r'"""(.*)"""', (SCRIPTS / script).read_text("utf-8"))
        for name, python in pythons.items():
            done = call(
                script, "--help", python=python, folder=tmp_path,
                PYTHONPATH=without_test_packages, PYTHONIOENCODING="ascii",
            )  # fmt: skip
            assert done.returncode == 0, (script, name, done.stderr)
            assert done.stderr == "", (script, name)
            said = done.stdout
            assert f"Usage: {script}" in said or first.strip() in said, (script, name)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".py"]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_dbt_nn(name: str, tmp_path: Path) -> None:
    """Each command is listed and shows itself in an example, in ASCII."""
    listed = call("cli.py", "--help", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert re.search(rf"^  {name}  +\w", listed.stdout, re.M)
    done = call("cli.py", name, "--help", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: dbt-nn {name} ")
    assert re.search(rf"^ +dbt-nn {name}\b", done.stdout, re.M)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["server"], "Usage: dbt-nn server"),
        (["server", "nothing"], "No such command 'nothing'"),
        (["load", "a", "--dtype", "float8"], "'float8' is not one of"),
        (["load", "--name", "a"], "give SOURCE"),
        (["load", "a", "--list"], "give either SOURCE or --list"),
        (["complete", "a", "--next", "0"], "--next"),
        (["pictures", "--zoom", "65"], "--zoom"),
        (["pictures", "--image", "1", "x"], "'x' is not a valid integer"),
        (["look", "a", "--output", "."], "is a directory"),
        (["check", "gpt2"], "is not of the form NETWORK=FOLDER"),
        (["generate", "a"], "--name"),
    ],
    ids=" ".join,
)
def test_mistakes_of_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    """They say what is wrong, with the exit status 2 of a usage error."""
    done = call("cli.py", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_command_of_a_clone(tmp_path: Path) -> None:
    """`make setup` makes .venv/bin/dbt-nn, which runs this clone from any folder."""
    for name in ("scripts", "dbt_nn"):
        shutil.copytree(PROJECT / name, tmp_path / "clone" / name)
    for name in ("dbt_project.yml", "requirements.lock", "profiles.example.yml"):
        shutil.copy(PROJECT / name, tmp_path / "clone")
    folder = tmp_path / "clone"
    venv.create(folder / ".venv", symlinks=True, with_pip=False)
    python = folder / ".venv" / "bin" / "python"
    variables = {"base": str(folder / ".venv"), "platbase": str(folder / ".venv")}
    packages = Path(sysconfig.get_path("purelib", vars=variables))
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run(
        ["sh", "-c", "cksum <requirements.lock >.venv/.installed-runtime"],
        cwd=folder,
        check=True,
    )
    setup = ["sh", str(folder / "scripts" / "setup.sh")]
    done = subprocess.run(setup, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (folder / "dbt_nn" / "__init__.py").write_text('__version__ = "of the copy"\n')
    done = subprocess.run(
        [folder / ".venv" / "bin" / "dbt-nn", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("dbt-nn of the copy\n", "")
    imported = [python, "-c", "import dbt_nn; print(dbt_nn.__version__)"]
    done = subprocess.run(imported, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"of the copy\n"


def test_another_python(tmp_path: Path) -> None:
    """It says how to get one with the packages."""
    base = getattr(sys, "_base_executable", sys.executable)
    for script in COMMANDS:
        done = call(script, python=(base, "-S", "-E", "-s"), folder=tmp_path)
        if script != "butterflies.py" or done.returncode:
            assert done.returncode == 1, script
            assert done.stderr.startswith("error: "), script
            assert "make setup" in done.stderr, script
            assert f".venv/bin/python scripts/{script}" in done.stderr, script


def test_test_packages(tmp_path: Path, without_test_packages: str) -> None:
    for script in ("bench.py", "make_reference.py", "train_gpt2_twin.py"):
        done = call(script, folder=tmp_path, PYTHONPATH=without_test_packages)
        assert done.returncode == 1, script
        assert "make setup-test" in done.stderr


def test_ctrl_c_at_once(tmp_path: Path) -> None:
    """While packages are imported."""
    (tmp_path / "psycopg2.py").write_text("raise KeyboardInterrupt\n")
    done = call("complete.py", "a", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_closed_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for script, *arguments in (("demo.py", "--help"), ("server.py", "url")):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / script), *arguments],
            stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
            cwd=tmp_path, env={**os.environ, "DBT_NN_TARGET": "server"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), script
    os.close(writer)


def test_without_a_server(tmp_path: Path) -> None:
    """The command that helps is in the message, and nothing is parsed before."""
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    commands = [
        ["complete.py", "It is"], ["draw.py"], ["pictures.py"], ["demo.py"],
        ["check.py"], ["load_checkpoint.py", "--list"], ["server.py", "check"],
        ["look.py", "It is"],
    ]  # fmt: skip
    environment = {
        "DBT_PROFILES_DIR": str(profiles),
        "DBT_NN_DATA": str(tmp_path / "pg"),
    }
    for there in (False, True):
        if there:
            shutil.copy(EXAMPLE, profiles / "profiles.yml")
        for command in commands:
            done = call(*command, folder=tmp_path, **environment)
            assert done.returncode == 1, command
            assert "make server" in done.stderr, (command, done.stderr)
    environment |= {"DBT_NN_TARGET": "server", "DBT_NN_PORT": "1"}
    for command in commands:
        done = call(*command, folder=tmp_path, **environment)
        assert done.returncode == 1, command
        assert "DBT_NN_PORT" in done.stderr, (command, done.stderr)


# --- What make hands on -------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", [" Emma", "Emma ", "\tEmma", "a  $b \"c\" '$(d)' #e", " =", "", "e\u0301"]
)
def test_make_hands_the_prompt_on_as_it_was_typed(tmp_path: Path, prompt: str) -> None:
    show = tmp_path / "show.py"
    show.write_text(
        f"import os, sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from dbt_nn.complete import prompt_of_make\n"
        "print(ascii(prompt_of_make(os.environ.get('PROMPT'))))\n"
    )
    make = ["make", "--silent", "-C", str(PROJECT), "-o", "checkpoint", "gpt2"]
    make.append(f"PY={sys.executable} {show}")
    for arguments, environment in (
        ([f"PROMPT={prompt}"], {}),
        ([], {"PROMPT": prompt}),
    ):
        done = subprocess.run(
            [*make, *arguments], env={**os.environ, **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1:] == [ascii(prompt)], done.stderr


# --- A prompt of the command line ---------------------------------------------


@pytest.fixture
def own_schema(connection: psycopg2.extensions.connection) -> Iterator[str]:
    schema = "test_command"
    yield schema
    for name in ("", "_gpt2"):
        connection.cursor().execute(
            f"drop schema if exists {schema}_command_line{name} cascade"
        )


def test_prompt_and_next_tokens(
    own_schema: str, tmp_path: Path, connection: psycopg2.extensions.connection
) -> None:
    """As transformers; and other options make dbt parse nothing anew."""
    loaded = run_script(
        "load_checkpoint.py", str(TWIN), "--name", "gpt2_twin", "--if-changed"
    )
    assert loaded.returncode == 0, loaded.stderr
    prompt = " Emma"
    network = GPT2LMHeadModel.from_pretrained(TWIN).eval()
    tokenizer = AutoTokenizer.from_pretrained(TWIN)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    environment = {
        "DBT_NN_SCHEMA": own_schema,
        "DBT_TARGET_PATH": str(tmp_path / "target"),
    }

    done = call(
        "complete.py", prompt, "max_new_tokens=6", folder=tmp_path, **environment
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        written = network.generate(ids, max_new_tokens=6, do_sample=False)
        logits = network(ids).logits[0, -1].double()
    completion = tokenizer.decode(written[0, ids.shape[1] :])
    assert done.stdout == f"{prompt}|{completion}\n"
    assert done.stderr.endswith("(finish_reason: length)\n")

    parsed = tmp_path / "target" / "partial_parse.msgpack"
    before = parsed.stat().st_mtime_ns
    done = call(
        "complete.py", prompt, "temperature=0.5", "--next", "7", folder=tmp_path,
        **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert parsed.stat().st_mtime_ns == before
    probabilities, tokens = torch.softmax(logits, -1).topk(7)
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == 7
    for n, line in enumerate(lines):
        rank, percent, token_id, token = line.split(maxsplit=3)
        assert (int(rank), int(token_id)) == (n + 1, tokens[n])
        assert float(percent[:-1]) / 100 == pytest.approx(
            float(probabilities[n]), abs=2e-6
        )
        assert token == f'"{tokenizer.decode(tokens[n])}"'

    done = call("complete.py", prompt, "steps=5", folder=tmp_path, **environment)
    assert done.returncode == 1
    assert 'no option is named "steps"' in done.stderr
    assert done.stdout == ""


# --- What a run shows ---------------------------------------------------------


def test_a_text_on_one_line() -> None:
    assert runner.tail("a\n b", 10) == "a b"
    assert runner.tail("abcdefghij", 10) == "abcdefghij"
    assert runner.tail("abcdefghijk", 10) == "...efghijk"
    assert "\x1b" not in runner.tail("\x1b[2J", 10)
    assert runner.printable("a\tb\nc\x1b\x07\x7f") == "a\tb\nc\u241b\u2407\u2421"


def event(name: str, message: str, level: str = "info", **data: Any) -> SimpleNamespace:
    info = SimpleNamespace(name=name, msg=message, level=level)
    return SimpleNamespace(info=info, data=SimpleNamespace(**data))


def step(left: int, pieces: dict[str, tuple[int, str]]) -> SimpleNamespace:
    """As the macro report_progress says it."""
    line = f"{left} left"
    report = {"network": "n", "steps_left": left, "pace": "", "line": line}
    return event("JinjaLogDebug", json.dumps({**report, "pieces": pieces}))


def test_what_is_shown_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a loop the first step, one in a while, and the last; print() and errors."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    display = runner.Display()
    node = SimpleNamespace(node_name="a_layer")
    for _ in range(2):
        start = event("LogStartLine", "1 of 2", node_info=node, index=1, total=2)
        display.event(start)
        for left in range(8, -1, -1):
            display.event(step(left, {"1": (8 - left, "a")}))
            display.event(event("PrintEvent", f"{left} left"))
        display.event(event("LogModelResult", "failed", "error"))
        display.event(event("PrintEvent", "later"))
    shown = capsys.readouterr()
    assert shown.out == ""
    loop = ["8 left", "5 left", "2 left", "0 left", "failed", "later"]
    assert shown.err.splitlines() == [*loop, *loop]


def test_texts_are_handed_on() -> None:
    found = []
    display = runner.Display(found.append)
    display.event(step(1, {"1": [0, "a"]}))
    display.event(step(0, {"1": [1, "b"]}))
    assert found == [{"1": [0, "a"]}, {"1": [1, "b"]}]


def test_a_text_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it once, also of a run that goes on, and of one with nothing to do."""
    for steps, shown in {
        (): "It|ab\n",
        ((0, "a"), (1, "b")): "It|ab\n",
        ((0, "a"),): "It|ab\n",
        ((1, "b"),): "It|...b\n\nIt|ab\n",
    }.items():
        stream = complete.Stream("It")
        for each in steps:
            stream.step({"1": each})
        stream.end("ab")
        assert capsys.readouterr().out == shown


# --- make distclean -----------------------------------------------------------


OF_USER = ("my.txt", "pictures/mine.png", "pictures/ddpm-x.gif")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with all that can be in it, and what is the user's."""
    folder = tmp_path / "project"
    for name in ("scripts", "dbt_nn"):
        shutil.copytree(PROJECT / name, folder / name)
    shutil.copy(EXAMPLE, folder)
    shutil.copy(PROJECT / "dbt_project.yml", folder)
    for name in ("models/ddpm/a.sql", *OF_USER):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the user")
    for pattern in (PROJECT / ".gitignore").read_text("utf-8").splitlines():
        if not pattern or pattern.startswith("#") or pattern == "/pictures/":
            continue
        name = pattern.strip("/").replace("*", "a")
        path = folder / name / "file" if pattern.endswith("/") else folder / name
        if name == "a.pyc":
            path = folder / "scripts" / "__pycache__" / name
        if name != ".postgres":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x" * 1000)
    shutil.copy(EXAMPLE, folder / "profiles.yml")
    (folder / "pictures" / "ddpm-1.png").write_text("of ours")
    return folder


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_uninstall(project: Path, tmp_path: Path) -> None:
    kept = {
        name
        for name in files(project)
        if name.startswith(("scripts/", "dbt_nn/", "models/"))
        and "__pycache__" not in name
    } | {"profiles.example.yml", "dbt_project.yml", *OF_USER}
    before = files(project)
    assert kept < before
    command = [sys.executable, "-B", str(project / "scripts" / "uninstall.py")]
    environment = {**os.environ, "DBT_NN_DATA": str(tmp_path / "none")}
    environment.pop("DBT_PROFILES_DIR")

    def uninstall(*arguments: str, stdin: int = subprocess.DEVNULL) -> tuple[int, str]:
        done = subprocess.run(
            [*command, *arguments], env=environment, stdin=stdin, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    code, said = uninstall()
    assert code == 1
    assert "MB" in said
    assert "make distclean YES=1" in said
    main, terminal = pty.openpty()
    os.write(main, b"no\n")
    code, said = uninstall(stdin=terminal)
    assert (code, said.splitlines()[-1]) == (
        1, "Remove all of it? [y/N] nothing was removed",
    )  # fmt: skip
    assert files(project) == before

    profile = project / "profiles.yml"
    text = profile.read_text().replace('"/not started: run make server"', '"/else"')
    profile.write_text(text.replace("threads: 1", "threads: 2"))
    os.write(main, b"y\n")
    code, said = uninstall(stdin=terminal)
    assert code == 0, said
    assert "profiles.yml, which you have edited" in said
    assert files(project) == kept | {"profiles.yml"}
    profile.write_text(text)  # but for the line that `start` writes
    code, said = uninstall("--yes")
    assert code == 0, said
    assert files(project) == kept
    assert textwrap.shorten(uninstall("--yes")[1], 40) == "nothing to remove"
