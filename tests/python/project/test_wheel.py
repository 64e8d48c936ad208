"""The wheel: what it holds, and a first run from it in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import psycopg2
import pytest
import yaml

import dbt_nn
from dbt_nn import init
from dbt_nn.command_line import ExpectedError
from dbt_nn.database import PROJECT
from runs import TWIN
from text_reference import Reference

DOCUMENT = PROJECT / "docs" / "package.md"
SCHEMA = "test_wheel"
# what dbt, the loader and `check` read
FOLDERS = ("macros", "models", "seeds", "tests/generic", "assets", "checkpoints")
FILES = ("dbt_project.yml", "profiles.example.yml")
DBT = "#!{python}\nfrom dbt.cli.main import cli\ncli()\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network: hatchling is one of the test packages."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of a new environment that has the wheel.

    A .pth file lends it the packages that this environment has, so that none is
    fetched; dbt_nn itself is the wheel's.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=variables))
    lent = sysconfig.get_path("purelib")
    (packages / "lent.pth").write_text(lent, encoding="utf-8")
    install = ["pip", "--python", str(python), "install", "--quiet", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", *install, "--no-deps", str(wheel)], check=True
    )
    dbt = folder / "bin" / "dbt"
    dbt.write_text(DBT.format(python=python), encoding="utf-8")
    dbt.chmod(0o755)
    return folder / "bin"


def test_versions_agree() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    package = yaml.safe_load((PROJECT / "dbt_project.yml").read_text("utf-8"))
    assert project["version"] == package["version"] == dbt_nn.__version__


def test_what_the_wheel_holds(wheel: Path) -> None:
    """Every file of the dbt package and of the bundled networks, and no other."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        + ["dbt_nn", *FOLDERS, *FILES],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.splitlines() if (PROJECT / name).exists()]
    expected = {
        name if name.startswith("dbt_nn/") else f"dbt_nn/dbt_package/{name}"
        for name in names
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.long
def test_first_run(
    connection: psycopg2.extensions.connection,
    database_environment: dict[str, str],
    binaries: Path,
    tmp_path: Path,
) -> None:
    """The first block of docs/package.md in an empty folder, as transformers writes."""
    block = re.search(r"```sh\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)[1]
    install, *lines = block.splitlines()
    assert install.startswith("pip install ")  # which the fixture has done
    environment = {
        name: value
        for name, value in database_environment.items()
        if not name.startswith("DBT_") or name in ("DBT_NN_DATA", "DBT_USE_COLORS")
    }
    environment |= {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),  # with no ~/.dbt
        "DBT_NN_SCHEMA": SCHEMA,
    }
    cursor = connection.cursor()
    cursor.execute(f"drop schema if exists {SCHEMA}, {SCHEMA}_gpt2 cascade")

    def shell(code: str, folder: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", code],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=900,
        )

    lost = shell("dbt-nn list")
    assert lost.returncode == 1
    assert lost.stderr.startswith("error: there is no dbt project in ")
    assert lost.stderr.count("\n") == 1

    done = shell("\n".join(lines))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'local: "{binaries.parent}' in (
        tmp_path / "letters" / "packages.yml"
    ).read_text(encoding="utf-8")
    reference = Reference(TWIN)
    cursor.execute(f"select prompt, completion from {SCHEMA}.gpt2_completions")
    found = cursor.fetchall()
    assert len(found) == 3
    for prompt, completion in found:
        expected = reference.generate({"prompt": prompt}, max_new_tokens=32)
        assert completion == reference.decode(expected)
    listed = shell("dbt-nn list", tmp_path / "letters")
    assert "gpt2_twin" in listed.stdout, listed.stderr
    refused = shell(f"dbt-nn generate {TWIN} --name gpt2", tmp_path / "letters")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "dbt_nn brings a network gpt2" in refused.stderr
    written = shell(f"dbt-nn generate {TWIN} --name mine", tmp_path / "letters")
    assert f"dbt-nn load {TWIN} --name mine" in written.stdout, written.stderr
    assert (tmp_path / "letters" / "models" / "mine" / "layers").is_dir()
    cursor.execute(f"drop schema {SCHEMA}, {SCHEMA}_gpt2 cascade")


# --- dbt-nn init --------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def test_init_leaves_files_of_the_user(tmp_path: Path) -> None:
    """And profiles.yml has the profile that the user's project asks for."""
    folder = tmp_path / "letters"
    init.initialise(folder)
    written = contents(folder)
    assert set(written) == {
        "dbt_project.yml",
        "packages.yml",
        "profiles.yml",
        ".gitignore",
    }
    assert yaml.safe_load(written["packages.yml"]) == {
        "packages": [{"local": str(PROJECT)}]
    }
    init.initialise(folder)
    assert contents(folder) == written

    (folder / "profiles.yml").unlink()
    (folder / "dbt_project.yml").write_text("name: mine\nprofile: other\n", "utf-8")
    (folder / "packages.yml").write_text("packages: []\n", "utf-8")
    init.initialise(folder)
    found = contents(folder)
    assert found["dbt_project.yml"] == "name: mine\nprofile: other\n"
    assert found["packages.yml"] == "packages: []\n"
    assert list(yaml.safe_load(found["profiles.yml"])) == ["other"]


def test_init_follows_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The marked line is brought up to date; of other lines it says what to add."""
    init.initialise(tmp_path)
    path = tmp_path / "packages.yml"
    written = path.read_text("utf-8")
    other = '  - git: "https://example.org/other.git"\n'
    old = re.sub(r"local: \S+", 'local: "/old"', written) + other
    path.write_text(old, "utf-8")
    init.initialise(tmp_path)
    assert path.read_text("utf-8") == written + other

    path.write_text("packages: []\n", "utf-8")
    capsys.readouterr()
    init.initialise(tmp_path)
    assert f'add to its packages:\n  - local: "{PROJECT}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("letters", "letters"),
        ("My Letters-2", "my_letters_2"),
        ("2024", "project_2024"),
        ("dbt_nn", "project_dbt_nn"),
        ("Öl", "l"),
        ("日", "project"),
    ],
)
def test_project_name(folder: str, name: str) -> None:
    assert init.project_name(Path(folder)) == name


def test_init_refuses(tmp_path: Path) -> None:
    with pytest.raises(ExpectedError, match="is dbt_nn itself"):
        init.initialise(PROJECT)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpectedError, match="is a file"):
        init.initialise(tmp_path / "file")
    (tmp_path / "dbt_project.yml").write_text("a: [", "utf-8")
    with pytest.raises(ExpectedError, match="is not YAML"):
        init.initialise(tmp_path)
