"""dbt-nn generate in a project that has dbt_nn as a package: it runs and is tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from psycopg2.extensions import connection as Connection
from sentence_transformers import SentenceTransformer

from conftest import Dbt
from dbt_nn import generate as generate_network
from dbt_nn.command_line import PROJECT, ExpectedError
from runs import copy_bare_project, load_checkpoint
from small_networks import save_encoder, save_text
from text_reference import Reference

SCHEMA = "test_own_network"
TEXT, ENCODER = "own_text", "own_encoder"
PROMPTS = ["Elizabeth was happy, and", "Mr. Darcy"]
TEXTS = ["It is a truth universally acknowledged", "a single man", "", "in want"]
NEW_TOKENS = 6
DBT_PROJECT = {
    "name": "letters",
    "profile": "dbt_nn",
    "model-paths": ["transformations"],
    "vars": {
        f"{TEXT}_prompts": "openings",
        f"{TEXT}_options": {"max_new_tokens": NEW_TOKENS, "prompt_logprobs": True},
        f"{ENCODER}_texts": "lines",
        "letters": {f"{ENCODER}_text": "line"},
    },
}
LETTERS = f"""
select completions.prompt_id, completions.completion, likeliest.token_id
from {{{{ ref('{TEXT}_completions') }}}} as completions
inner join (
    {{{{ dbt_nn.next_tokens('{TEXT}', 1) }}}}
) as likeliest using (prompt_id)
"""


def values(column: str, texts: list[str], key: str) -> str:
    """A model of texts."""
    rows = ", ".join(f"({n}, '{text}')" for n, text in enumerate(texts, 1))
    return f"select * from (values {rows}) as given ({key}, {column})"


def make_project(folder: Path, package: Path) -> Path:
    """A project that has dbt_nn as a package; without its networks, dbt starts fast."""
    models = folder / "transformations"
    models.mkdir(parents=True)
    (folder / "dbt_project.yml").write_text(yaml.safe_dump(DBT_PROJECT))
    packages = {"packages": [{"local": str(PROJECT)}]}
    (folder / "packages.yml").write_text(yaml.safe_dump(packages))
    (folder / "dbt_packages").mkdir()
    (folder / "dbt_packages" / "dbt_nn").symlink_to(package)
    (models / "openings.sql").write_text(values("prompt", PROMPTS, "prompt_id"))
    (models / "lines.sql").write_text(values("line", TEXTS, "id"))
    (models / "letters.sql").write_text(LETTERS)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        TEXT: save_text(folder / TEXT, seed=5),
        ENCODER: save_encoder(folder / ENCODER, TEXTS, seed=6),
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = copy_bare_project(tmp_path / "package")
    folder = make_project(tmp_path / "letters", package)
    monkeypatch.chdir(folder)
    return folder


def generate(*arguments: str | Path) -> None:
    """The command, where the test is."""
    generate_network.main([*map(str, arguments)], standalone_mode=False)


@pytest.fixture
def loaded(
    connection: Connection, checkpoints: dict[str, Path]
) -> Iterator[dict[str, Path]]:
    """In schemas of the networks' names."""
    for name, folder in checkpoints.items():
        load_checkpoint(folder, name)
    yield checkpoints
    schemas = [SCHEMA, *(f"{SCHEMA}_{name}" for name in checkpoints), *checkpoints]
    connection.cursor().execute(f"drop schema if exists {', '.join(schemas)} cascade")


def test_networks_run(
    dbt: Dbt,
    connection: Connection,
    project: Path,
    loaded: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As transformers and sentence-transformers compute them, with all data tests."""
    for name, folder in loaded.items():
        generate(folder, "--name", name)
        assert f"load {folder} --name {name}\n" in capsys.readouterr().out
    flags = ["--project-dir", str(project), "--target-path", str(project / "target")]
    done = dbt("build", "--threads", "2", *flags, env={"DBT_NN_SCHEMA": SCHEMA})
    assert "WARN=0 ERROR=0 SKIP=0" in done.stdout
    manifest = json.loads((project / "target" / "manifest.json").read_text("utf-8"))
    kinds = [
        node["resource_type"]
        for node in manifest["nodes"].values()
        if node["package_name"] == "letters"
    ]
    assert kinds.count("model") > 50
    assert kinds.count("test") > 50

    cursor, reference = connection.cursor(), Reference(loaded[TEXT])
    cursor.execute(f"select * from {SCHEMA}.letters order by prompt_id")
    rows = cursor.fetchall()
    assert len(rows) == len(PROMPTS)
    for (_, completion, likeliest), prompt in zip(rows, PROMPTS, strict=True):
        expected = reference.generate({"prompt": prompt}, max_new_tokens=NEW_TOKENS)
        assert completion == reference.decode(expected)
        assert likeliest == expected[0]

    cursor.execute(
        f"select embedding::real[] from {SCHEMA}.{ENCODER}_embeddings order by key"
    )
    found = np.array([row[0] for row in cursor.fetchall()])
    vectors = SentenceTransformer(str(loaded[ENCODER]), device="cpu").encode(TEXTS)
    assert found.shape == vectors.shape
    assert abs(found - vectors).max() < 1e-5 * abs(vectors).max()


def test_drift_is_found(project: Path, checkpoints: dict[str, Path]) -> None:
    source = checkpoints[ENCODER]
    with pytest.raises(ExpectedError, match="differs from the generator"):
        generate(source, "--name", ENCODER, "--check")
    generate(source, "--name", ENCODER)
    generate(source, "--name", ENCODER, "--check")
    (project / "transformations" / ENCODER / "mine.sql").write_text("select 1")
    for flags in ([], ["--check"]):
        with pytest.raises(ExpectedError, match=r"mine\.sql"):
            generate(source, "--name", ENCODER, *flags)


def test_refusals(
    project: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExpectedError, match="dbt_nn brings a network minilm"):
        generate(checkpoints[ENCODER], "--name", "minilm")
    (project / "dbt_project.yml").unlink()
    with pytest.raises(ExpectedError, match="there is no dbt project in"):
        generate(checkpoints[ENCODER], "--name", ENCODER)
    (project / "dbt_project.yml").write_text("a: [", "utf-8")
    with pytest.raises(ExpectedError, match="can't be read"):
        generate(checkpoints[ENCODER], "--name", ENCODER)


def test_defaults_are_those_of_the_vars(project: Path, dbt: Dbt) -> None:
    """A network of another project does not see the vars of our dbt_project.yml."""
    text = (PROJECT / "dbt_project.yml").read_text(encoding="utf-8")
    variables = yaml.safe_load(text)["vars"]
    calls = {
        name: f"dbt_nn.tolerance('{name.removeprefix('tolerance_')}')"
        for name in variables
        if name.startswith("tolerance_")
    }
    for name in ("batch_prompts", "batch_tokens", "work_per_process"):
        calls[name] = f"dbt_nn.{name}()"
    for name in ("kernels", "compiled_kernels"):
        default = "" if name == "kernels" else "'compiled_kernels', 'plain'"
        calls[name] = f"dbt_nn.kernel_form({default})"
    for name in ("batch_memory", "resident_memory"):
        calls[name] = f"dbt_nn.memory_setting('{name}')"
    expected = variables | {"resident_memory": 2 << 30}
    found = ", ".join(f"'{name}': {call}" for name, call in calls.items())
    (project / "transformations" / "letters.sql").unlink()  # it reads a network
    model = project / "transformations" / "defaults.sql"
    model.write_text("select '{{ tojson({" + found + "}) }}' as defaults")
    flags = ["--project-dir", str(project), "--target-path", str(project / "target")]
    dbt("compile", "--select", "defaults", *flags)
    compiled = project / "target" / "compiled" / "letters" / "transformations"
    shown = (compiled / "defaults.sql").read_text(encoding="utf-8").split("'")[1]
    assert json.loads(shown) == {name: expected[name] for name in calls}


def test_materialization_of_a_whole_project(
    dbt: Dbt, project: Path, checkpoints: dict[str, Path]
) -> None:
    """One right below `models:` would make the package's layers plain tables."""
    models = project / "dbt_packages" / "dbt_nn" / "models" / "gpt2"
    files = generate_network.generate(checkpoints[TEXT], "gpt2")
    generate_network.write(models, files)
    settings = DBT_PROJECT | {"models": {"+materialized": "table"}}
    (project / "dbt_project.yml").write_text(yaml.safe_dump(settings))
    for name in ("openings", "lines", "letters"):
        (project / "transformations" / f"{name}.sql").unlink()
    flags = ["--project-dir", str(project), "--target-path", str(project / "target")]
    done = dbt(
        *("run", "--select", "gpt2", *flags, "--vars", "{gpt2_prompts: a.prompts}"),
        env={"DBT_NN_SCHEMA": SCHEMA},
        check=False,
    )
    assert "is materialized as table, and a network needs its own" in done.stdout
    assert "below the name of your project" in done.stdout
