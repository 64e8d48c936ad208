"""The committed models are what the generator writes; and it is careful."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from conftest import Dbt
from runs import TWIN, copy_project

CHECKPOINTS = TWIN.parent

Generate = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


@pytest.fixture
def generate(project: Path) -> Generate:
    """Run the generator of a copy of the project."""

    def run(*arguments: str, source: Path = TWIN) -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, project / "scripts" / "generate_network.py", source]
            + list(arguments),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def files(folder: Path) -> dict[Path, str]:
    return {
        path.relative_to(folder): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["gpt2", "ddpm"])
def test_models_are_up_to_date(generate: Generate, name: str) -> None:
    done = generate("--name", name, "--check", source=CHECKPOINTS / f"{name}-twin")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("change", ["edited", "edited yaml", "missing", "left over"])
def test_drift_is_found(project: Path, generate: Generate, change: str) -> None:
    folder = project / "models" / "gpt2"
    layer = folder / "layers" / "h_03" / "gpt2_h_3_mlp_c_fc.sql"
    changed = layer
    if change == "edited":
        layer.write_text(layer.read_text().replace("gelu_new", "gelu"))
    elif change == "edited yaml":
        changed = folder / "_gpt2__models.yml"
        changed.write_text(changed.read_text() + "\n")
    elif change == "missing":
        layer.unlink()
    else:
        changed = layer.with_name("gpt2_h_12_ln_1.sql")
        changed.write_text(layer.read_text())
    before = files(folder)
    done = generate("--name", "gpt2", "--check")
    assert done.returncode == 1
    assert changed.name in done.stderr
    assert files(folder) == before, "--check must not write"
    assert generate("--name", "gpt2").returncode == 0
    assert generate("--name", "gpt2", "--check").returncode == 0


def test_files_of_others_stay(project: Path, generate: Generate) -> None:
    """A file that it did not write stops the generator before it writes any."""
    folder = project / "models" / "gpt2"
    (folder / "mine.sql").write_text("select 1 as one\n")
    (folder / "layers" / "gpt2_ln_f.sql").write_text("select 2 as two\n")
    before = files(folder)
    done = generate("--name", "gpt2")
    assert done.returncode == 1
    assert "layers/gpt2_ln_f.sql, mine.sql: move them" in done.stderr
    assert files(folder) == before


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ('{"model_type": "gpt2", "n_layer": 1}', "No-Name", "not a good name"),
        ('{"model_type": "gpt2"}', "net", "nothing for vocab_size"),
        ('{"model_type": "t5", "n_layer": 1}', "net", "t5"),
        ("{", "net", "not valid JSON"),
        (None, "net", "does not exist"),
    ],
)
def test_bad_config(
    project: Path, generate: Generate, text: str | None, name: str, message: str
) -> None:
    source = project / "config.json"
    if text is not None:
        source.write_text(text)
    done = generate("--name", name, source=source)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "models" / name).exists()


def test_folder_defaults_change_nothing(
    dbt: Dbt, project: Path, generate: Generate, tmp_path: Path
) -> None:
    """Models are configured as if dbt_project.yml had nothing of their folders."""

    def configurations(target: Path) -> dict[str, dict]:
        dbt("parse", "--project-dir", str(project), "--target-path", str(target))
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        return {
            name: node["config"]
            for name, node in manifest["nodes"].items()
            if node["resource_type"] == "model"
        }

    with_defaults = configurations(tmp_path / "with")
    assert len(with_defaults) > 300
    path = project / "dbt_project.yml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("gpt2", "ddpm"):
        del settings["models"]["dbt_nn"][name]
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    for name in ("gpt2", "ddpm"):
        done = generate("--name", name, source=CHECKPOINTS / f"{name}-twin")
        assert done.returncode == 0, done.stderr
    assert configurations(tmp_path / "without") == with_defaults
    layer = with_defaults["model.dbt_nn.gpt2_h_3_attn"]
    assert layer["tags"] == ["block_3"]
    assert layer["materialized"] == "layer"
