"""A whole checkpoint: weights, config and what belongs to them, all checked.

`open_checkpoint` returns a `Checkpoint` whose tensors are known by name, shape and
place in the file, and whose `modules` say what becomes of each one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dbt_nn.checkpoint.chat import chat_settings
from dbt_nn.checkpoint.config import unsupported
from dbt_nn.checkpoint.configuration import Configuration, read_configuration
from dbt_nn.checkpoint.files import CheckpointError, quoted
from dbt_nn.checkpoint.scheduler import read_scheduler
from dbt_nn.checkpoint.tensors import (
    DTYPE_BYTES,
    READABLE,
    Tensor,
    find_weights,
    read_header,
)
from dbt_nn.checkpoint.tokenizer import read_tokenizer
from dbt_nn.checkpoint.unigram import read_unigram
from dbt_nn.checkpoint.vocabulary import Tokenizer
from dbt_nn.checkpoint.wordpiece import read_word_pieces
from dbt_nn.networks.config import Config
from dbt_nn.networks.graph import Network
from dbt_nn.networks.modules import Alias, Module

# Blocks of a quarter of BLOCK_BYTES in memory at once, to be hashed.
HASHED_BLOCKS = 4
# Of tokenizers, in messages.
NAMES = {"bpe": "byte-level BPE", "unigram": "Unigram"}
# The longest Postgres name.
MAX_IDENTIFIER = 63

Progress = Callable[[int], None]


@dataclass
class Checkpoint:
    """A checkpoint whose every part was checked; `close` it after use.

    Attributes:
        folder: where its files are.
        family: what kind of network it is.
        config: config.json, completed with the family's defaults, and what an
            encoder's tokenizer adds to it.
        tensors: the weights by the layout's names, buffers left out.
        modules: what to make of them, in the network's order.
        tokenizer: None if there is none.
        scheduler: scheduler_config.json, completed with its class's defaults;
            None if the family has none.
        digest: SHA-256 in hexadecimal of config, weights, tokenizer and scheduler.
        largest: the largest absolute weight of each tensor that becomes a table.
        tokenizer_kind: as a network's attribute tokenizer.

    """

    folder: Path
    family: type[Network]
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    modules: list[Module]
    tokenizer: Tokenizer | None
    scheduler: dict[str, Any] | None
    digest: str
    _files: ExitStack = field(repr=False)
    largest: dict[str, float] = field(default_factory=dict)
    tokenizer_kind: str | None = None

    @property
    def stored(self) -> list[Tensor]:
        """The tensors that become tables: shared weights count once."""
        names = {name for module in self.modules for name, _ in module.tensors()}
        return [tensor for name, tensor in self.tensors.items() if name in names]

    @property
    def parameters(self) -> int:
        """How many weights the network has."""
        return sum(tensor.size for tensor in self.stored)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Checkpoint:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()


def open_checkpoint(
    folder: Path,
    *,
    tokenizer: bool = True,
    progress: Callable[[int], Progress] | None = None,
) -> Checkpoint:
    """Open a checkpoint folder and check all of it, weights included.

    Args:
        folder: config.json, safetensors and, maybe, a tokenizer; the modules of
            sentence-transformers; or a pipeline of diffusers.
        tokenizer: False to leave the tokenizer out.
        progress: called with the bytes to check; the result is called with
            the bytes of each step.

    Raises:
        CheckpointError: anything that is wrong with the checkpoint.

    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder. Give the folder that holds config.json and "
            "the safetensors file."
        )
    configuration = read_configuration(folder)
    config, family = configuration.content, configuration.family
    checked, parts = configuration.checked, configuration.parts
    scheduler = read_scheduler(parts) if family.is_scheduled else None

    with ExitStack() as files:
        paths = find_weights(parts.network, family.stem, family.convert)
        found = _open_tensors(paths, files)
        tensors = _canonical(found, family)
        if configuration.dense:
            tensors |= _open_dense(configuration.dense, files)
        modules = _check_modules(checked, family, tensors)
        texts = _read_tokenizer(configuration) if tokenizer else None
        if texts is not None:
            config = {**config, **texts.settings}
            if not family.is_encoder:
                config |= chat_settings(configuration.parts.network)
        checkpoint = Checkpoint(
            folder, family, config, tensors, modules, texts, scheduler, "", files
        )
        checkpoint.tokenizer_kind = configuration.tokenizer
        checkpoint.digest = _check_weights(checkpoint, progress)
        checkpoint._files = files.pop_all()
        return checkpoint


def _read_tokenizer(configuration: Configuration) -> Tokenizer | None:
    """Read the tokenizer of the kind that the network needs, if there is one."""
    folder, family = configuration.parts.network, configuration.family
    if family.tokenizer is None:
        return None
    rows = configuration.checked.vocab_size
    lower = configuration.content.get("do_lower_case") is True and family.is_encoder
    kind = configuration.tokenizer
    if kind == "wordpiece":
        return read_word_pieces(folder, rows, lower_first=lower)
    if lower:
        supported = f"only false is, with a {NAMES[kind]}"
        raise unsupported("do_lower_case", True, supported, "sentence_bert_config.json")
    if kind == "unigram":
        return read_unigram(folder, configuration.content, rows)
    return read_tokenizer(
        folder, configuration.content, rows, is_encoder=family.is_encoder
    )


def _open_tensors(paths: list[Path], files: ExitStack) -> dict[str, Tensor]:
    """Open safetensors files and read their headers."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            # unbuffered: blocks are large, and a mapped file that is cut short
            # meanwhile would end the process with a bus error
            file = files.enter_context(path.open("rb", buffering=0))
            header = read_header(path, file)
        except OSError as error:
            raise CheckpointError(
                f"{path} can't be read: {error.strerror}. Check the file and its "
                "rights."
            ) from None
        for name, tensor in header.items():
            if name in tensors:
                raise CheckpointError(
                    f"Tensor {quoted(name)} is in two files, {tensors[name].path.name} "
                    f"and {path.name}. Fetch the checkpoint again."
                )
            tensors[name] = tensor
    return tensors


def _open_dense(folder: Path, files: ExitStack) -> dict[str, Tensor]:
    """Open the weights of sentence-transformers' Dense: dense.linear.weight, .bias."""
    convert = "sentence-transformers: SentenceTransformer(SOURCE).save(FOLDER)"
    found = _open_tensors(find_weights(folder, "model", convert), files)
    return {
        f"dense.{name}": replace(tensor, name=f"dense.{name}")
        for name, tensor in found.items()
    }


def _canonical(found: dict[str, Tensor], family: type[Network]) -> dict[str, Tensor]:
    """Name tensors as the layout does; leave buffers out."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        canonical = family.canonical(name)
        if canonical is None:
            continue
        if canonical in tensors:
            raise CheckpointError(
                f"Tensors {quoted(tensors[canonical].name)} and {quoted(name)} of "
                f"{tensor.path} are the same weight twice. Save the checkpoint again."
            )
        tensors[canonical] = tensor
    return tensors


def _check_modules(
    config: Config, family: type[Network], tensors: dict[str, Tensor]
) -> list[Module]:
    """Compare the tensors with those of the network; return its modules."""
    relations: set[str] = set()
    used: set[str] = set()
    where = next(iter(tensors.values())).path.parent if tensors else "The checkpoint"

    def check(module: Module) -> None:
        for name, shape in module.tensors():
            _check_tensor(tensors.get(name), name, shape, where)
            used.add(name)
        if isinstance(module, Alias):
            used.add(module.copy)
        if len(module.relation) > MAX_IDENTIFIER or module.relation in relations:
            raise CheckpointError(
                f"{where}: the module {module.relation} can't be a table of its own "
                "(its name is too long or not unique). Choose another checkpoint."
            )
        relations.add(module.relation)

    # As soon as each is known: a configuration that claims a million layers fails
    # at the first that is missing.
    modules = family("checkpoint", config, tensors, check).modules
    unexpected = [
        tensor.name
        for name, tensor in tensors.items()
        if name not in used and not re.fullmatch(family.unused, name)
    ]
    if unexpected:
        raise CheckpointError(
            f"{where} has {len(unexpected)} tensor(s) that a {family.kind} network of "
            f"this config.json does not have: {', '.join(map(quoted, unexpected[:5]))}"
            f"{' ...' if len(unexpected) > 5 else ''}. Use the config.json that "
            "belongs to the checkpoint, or a checkpoint without them."
        )
    return modules


def _check_tensor(
    tensor: Tensor | None, name: str, shape: tuple[int, ...], where: object
) -> None:
    """Compare a tensor with what the network has under this name."""
    if tensor is None:
        raise CheckpointError(
            f"{where}: tensor {name} is missing, which config.json asks for. "
            "Fetch the checkpoint again, or use the config.json that belongs "
            "to it."
        )
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.path}: tensor {name} has shape {list(tensor.shape)}, but "
            f"config.json asks for {list(shape)}. Use the config.json that "
            "belongs to the checkpoint."
        )
    if tensor.dtype not in READABLE:
        raise CheckpointError(
            f"{tensor.path}: tensor {name} has dtype {tensor.dtype}, which is "
            "not supported. Weights may be F32, F16 or BF16: convert the "
            "checkpoint to one of them."
        )


def _check_weights(
    checkpoint: Checkpoint, progress: Callable[[int], Progress] | None
) -> str:
    """Look at every weight: refuse NaN and infinity; note the largest; the digest."""
    names = {tensor.name: name for name, tensor in checkpoint.tensors.items()}
    stored = sorted(checkpoint.stored, key=lambda tensor: (tensor.path, tensor.start))
    step = progress(sum(t.nbytes for t in stored)) if progress else lambda _: None
    digest = hashlib.sha256()
    digest.update(json.dumps(checkpoint.config, sort_keys=True).encode())
    if checkpoint.tokenizer:
        digest.update(repr(checkpoint.tokenizer.vocabulary).encode())
        digest.update(repr(checkpoint.tokenizer.merges).encode())
        if checkpoint.tokenizer.characters:
            digest.update(repr(checkpoint.tokenizer.characters).encode())
        if checkpoint.tokenizer.scores:
            digest.update(repr(checkpoint.tokenizer.scores).encode())
            digest.update(repr(checkpoint.tokenizer.replacements).encode())
    if checkpoint.scheduler:
        digest.update(json.dumps(checkpoint.scheduler, sort_keys=True).encode())
    for tensor in stored:
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
    # a digest of each block, on all cores, and then of those
    parts: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for tensor, first, values in (
            (each, *block) for each in stored for block in each.blocks()
        ):
            finite = np.isfinite(values)
            if not finite.all():
                at = int(np.argmin(finite))
                index = [int(i) for i in np.unravel_index(first + at, tensor.shape)]
                raise CheckpointError(
                    f"{tensor.path}: tensor {tensor.name} holds {values[at]} at index "
                    f"{index}. A network with it can't compute anything: use a "
                    "checkpoint whose training did not diverge, or fetch it again."
                )
            if len(values):
                name, most = names[tensor.name], max(values.max(), -values.min())
                most = max(float(most), checkpoint.largest.get(name, 0.0))
                checkpoint.largest[name] = most
            parts.append(pool.submit(hashlib.sha256, values))
            if len(parts) > HASHED_BLOCKS:
                digest.update(parts.popleft().result().digest())
            step(len(values) * DTYPE_BYTES[tensor.dtype])
        for part in parts:
            digest.update(part.result().digest())
    return digest.hexdigest()
