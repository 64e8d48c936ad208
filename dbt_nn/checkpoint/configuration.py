"""What decides which network a checkpoint is: config.json, and the files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.config import MAX_CONFIG_BYTES, check_value, unsupported
from dbt_nn.checkpoint.files import CheckpointError, read_json
from dbt_nn.checkpoint.scheduler import PIPELINE_INDEX, Parts, find_parts
from dbt_nn.checkpoint.sentence import read_modules, sentence_keys
from dbt_nn.checkpoint.unigram import is_unigram
from dbt_nn.networks import network_of
from dbt_nn.networks.config import Config
from dbt_nn.networks.graph import Network

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Configuration:
    """A checkpoint's configuration, whole and checked.

    Attributes:
        family: what kind of network it is.
        content: config.json, completed with the family's defaults; for an encoder
            also what sentence-transformers keeps in other files.
        checked: what the family takes of it.
        parts: where the checkpoint's parts are.
        dense: the folder of the linear layer after pooling, if there is one.

    """

    family: type[Network]
    content: dict[str, Any]
    checked: Config
    parts: Parts
    dense: Path | None

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer's kind: the checkpoint's own, or that of all such networks."""
        own = self.content.get("tokenizer") if self.family.is_encoder else None
        return own or self.family.tokenizer


def read_configuration(source: Path) -> Configuration:
    """Read the configuration of a checkpoint's folder, or of a config.json in it.

    Raises:
        CheckpointError: it is missing, malformed, or of no network that is computed.

    """
    folder = source if source.is_dir() else source.parent
    parts = find_parts(folder)
    modules = read_modules(folder)
    if modules:
        parts = Parts(modules.transformer, folder, None)
    path = parts.network / "config.json" if source.is_dir() else source
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Give the folder of a checkpoint as transformers, "
            "sentence-transformers or diffusers saves it: config.json beside the "
            f"safetensors file, or a pipeline's folder with its {PIPELINE_INDEX}."
        )
    content = read_json(path, MAX_CONFIG_BYTES)
    check_value(content, path)
    family = network_of(content)
    content = family.complete(content)
    if not family.is_encoder and not family.is_scheduled:
        content = content | _generation_keys(parts.network)
    dense = None
    if family.is_encoder:
        content = content | sentence_keys(folder, modules, content, family.kind)
        dense = modules.dense if modules else None
        content.pop("tokenizer", None)
        if is_unigram(parts.network):
            content["tokenizer"] = "unigram"
    checked = family.config_type.read(content)
    return Configuration(family, content, checked, parts, dense)


def _generation_keys(folder: Path) -> dict[str, Any]:
    """The tokens that end a text, which generation_config.json may have anew.

    transformers' generate() asks it first. Some files have several there, and
    config.json one.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return {}
    eos = read_json(path, MAX_CONFIG_BYTES).get("eos_token_id")
    if eos is None:
        return {}
    if not all(type(i) is int for i in (eos if isinstance(eos, list) else [eos])):
        raise unsupported(
            "eos_token_id", eos, "only a token id or several are", GENERATION_CONFIG
        )
    return {"eos_token_id": eos}
