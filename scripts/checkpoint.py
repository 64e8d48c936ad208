"""Read a checkpoint folder: weights, config and what belongs to them, all checked.

Nothing here knows about a database. `open_checkpoint` returns a `Checkpoint`
whose tensors are known by name, shape and place in the file, and whose
`modules` say what becomes of each one. A network family is a `Family`: the
configurations that it accepts and a layout, which lists its modules.

Whatever is wrong with a checkpoint is a `CheckpointError`: one paragraph that
says what is wrong, where, and what to do. Files are untrusted: sizes are
bounded before anything is allocated, and names are compared with the layout's
own names, so that only the latter go further.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

MIB = 1 << 20
# GPT-2 XL, 580 tensors, has a header of 60 KB. The format's own limit, 100 MB,
# would let a hostile header take gigabytes once parsed.
MAX_HEADER_BYTES = 8 * MIB
MAX_CONFIG_BYTES = MIB
MAX_CONFIG_DEPTH = 32
# GPT-2's has 1.4 MB, one of 250,000 tokens 14 MB; JSON takes up to 25 times its
# size once it is parsed.
MAX_TOKENIZER_BYTES = 16 * MIB
MAX_SHARDS = 1000
# What one read of weights may hold in memory, as float32.
BLOCK_BYTES = 64 * MIB
# Blocks of a quarter of that in memory at once, to be hashed.
HASHED_BLOCKS = 4
# The most dimensions of a pgvector `vector`, and the longest Postgres name.
MAX_VECTOR = 16_000
MAX_IDENTIFIER = 63
# The most channels of a feature map: a vector holds ten floats of each, nine of
# a 3 x 3 patch and one to spare.
MAX_CHANNELS = MAX_VECTOR // 10
MAX_IMAGE_CHANNELS = 16
# pixels on a side; the pixels of an image fit a Postgres int
MAX_SAMPLE_SIZE = 1 << 15
MAX_TIMESTEPS = 10_000

# Bytes per element of the dtypes that a header may name. Only those in
# READABLE can be weights; the others occur in buffers that are ignored.
DTYPE_BYTES = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"], 1),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 2),
    **dict.fromkeys(["I32", "U32", "F32"], 4),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 8),
}
READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# named in the error of a checkpoint that has nothing else
OTHER_FORMATS = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"}

Progress = Callable[[int], None]


class CheckpointError(Exception):
    """A checkpoint that can't be loaded; the message is for the user."""


def quoted(name: object) -> str:
    """Show an untrusted name on one line, shortened."""
    text = repr(name)
    return text if len(text) <= 120 else text[:110] + "...'"


# --- JSON ---------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing keys that occur twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quoted(key)} occurs twice")
            seen.add(key)
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """Parse untrusted bytes that must hold one JSON object.

    Raises:
        CheckpointError: not UTF-8, not JSON, nested too deeply, a key twice,
            or something other than an object.

    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON ({error}). Fetch the checkpoint again."
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{what} should hold a JSON object, but holds a "
            f"{type(value).__name__}. Fetch the checkpoint again."
        )
    return value


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), str(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror}. Check the file and its rights."
        ) from None
    if len(content) > limit:
        raise CheckpointError(
            f"{path} is larger than {limit // MIB} MiB, which no checkpoint of "
            "this kind needs. Check that it is the file you mean."
        )
    return content


# --- safetensors --------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in a safetensors file; no weight is in memory."""

    name: str
    path: Path
    file: BinaryIO = field(repr=False)
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * DTYPE_BYTES[self.dtype]

    def read(self, first: int, count: int) -> np.ndarray:
        """Read `count` elements from the flat index `first` -> float32 [count].

        Raises:
            CheckpointError: the file ends before them, or the disk fails.

        """
        raw = np.empty(count, dtype=READABLE[self.dtype])
        view = memoryview(raw).cast("B")
        try:
            self.file.seek(self.start + first * raw.itemsize)
            while view:
                got = self.file.readinto(view)
                if not got:
                    raise CheckpointError(
                        f"{self.path} ended while tensor {quoted(self.name)} was "
                        "read: it was cut short. Fetch the file again."
                    )
                view = view[got:]
        except OSError as error:
            raise CheckpointError(
                f"{self.path} can't be read ({error.strerror}) at tensor "
                f"{quoted(self.name)}. Check the disk and fetch the file again."
            ) from None
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32
            return (raw.astype("<u4") << 16).view("<f4")
        return raw.astype("<f4", copy=False)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Go through the tensor in order: (flat index, float32 [some])."""
        step = 4 * MIB
        for first in range(0, self.size, step):
            yield first, self.read(first, min(step, self.size - first))


def read_header(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    """Read and check a safetensors header: the tensors by name.

    The tensors must fill the file without gaps or overlaps, as the format
    asks, so a file that was cut short or tampered with is found here, in bounded
    time and memory. The safetensors library has the last word. It does not read
    the weights: it has no bfloat16 without torch, and it maps the file.

    Raises:
        CheckpointError: anything that breaks the format, or a header of more
            than MAX_HEADER_BYTES.

    """

    def bad(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is not a valid safetensors file: {what}. It may be cut short "
            "or damaged: fetch it again, or save the checkpoint again."
        )

    file.seek(0, 2)
    file_bytes = file.tell()
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise bad(f"it has {file_bytes} bytes, too few for a header")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > file_bytes - 8:
        raise bad(
            f"its header claims {header_bytes} bytes, but the file has {file_bytes}"
        )
    if header_bytes > MAX_HEADER_BYTES:
        raise bad(
            f"its header claims {header_bytes} bytes; {MAX_HEADER_BYTES} is the limit"
        )
    header = parse_json(file.read(header_bytes), f"The header of {path}")

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise bad("its __metadata__ is not an object")
    data = 8 + header_bytes
    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensor = f"tensor {quoted(name)}"
        if not isinstance(entry, dict):
            raise bad(f"{tensor} has no description")
        dtype, shape = entry.get("dtype"), entry.get("shape")
        offsets = entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"{path}: {tensor} has dtype {quoted(dtype)}, which is not "
                "supported. Weights may be F32, F16 or BF16: convert the "
                "checkpoint to one of them."
            )
        if not _sizes(shape) or len(shape) > 8:
            raise bad(f"{tensor} has shape {quoted(shape)}")
        if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise bad(f"{tensor} has data_offsets {quoted(offsets)}")
        if math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
            raise bad(
                f"{tensor} of shape {quoted(shape)} and dtype {dtype} does not fill "
                f"its {offsets[1] - offsets[0]} bytes"
            )
        if data + offsets[1] > file_bytes:
            raise bad(
                f"{tensor} should end at byte {data + offsets[1]}, but the file has "
                f"{file_bytes} bytes"
            )
        spans.append((offsets[0], offsets[1], name))
        tensors[name] = Tensor(name, path, file, dtype, tuple(shape), data + offsets[0])
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise bad(
                f"tensor {quoted(name)} starts at byte {first} of the data, where "
                f"{end} is expected (an overlap or a gap)"
            )
        end = last
    if data + end != file_bytes:
        raise bad(f"{file_bytes - data - end} bytes follow the last tensor")
    try:
        with safe_open(path, framework="numpy") as reference:
            known = set(reference.keys())
    except SafetensorError as error:
        raise bad(f"the safetensors library refuses it ({error})") from None
    except (MemoryError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be mapped into memory ({error}). Check that its "
            f"{file_bytes} bytes are what you expect, and the limit of this process's "
            "address space (ulimit -v)."
        ) from None
    if known != set(tensors):
        raise bad("the safetensors library reads other tensors from it")
    return tensors


def _sizes(value: object) -> bool:
    """Whether `value` is a list of integers that fit in 63 bits, none negative."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )


def find_weights(folder: Path, stem: str, convert: str) -> list[Path]:
    """Find the safetensors files of a checkpoint: one, or the shards of an index.

    Args:
        folder: where they are.
        stem: their name without a suffix.
        convert: how to save them from another format, for the error.

    Raises:
        CheckpointError: none, several without an index, or a shard is missing.

    """
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(
            f"{folder} has {len(found)} safetensors files ({found[0].name}, "
            f"{found[1].name} ...) but no {index.name} that says how they belong "
            "together. Fetch the index, or keep one file in the folder."
        )
    others = sorted(p.name for p in folder.iterdir() if p.suffix in OTHER_FORMATS)
    seen = f" (it has {', '.join(others[:3])})" if others else ""
    raise CheckpointError(
        f"{folder} has no safetensors file{seen}. Only safetensors are read: a pickle "
        "can run code when it is opened. Convert a checkpoint that you trust with "
        f"{convert}, then load FOLDER."
    )


def _shards(index: Path) -> list[Path]:
    """List the shards that an index names, each once."""
    weight_map = read_json(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map, so its shards are unknown. Fetch it again."
        )
    names: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(
            r"[\w-][\w.-]*\.safetensors", name
        ):
            raise CheckpointError(
                f"{index} places tensor {quoted(tensor)} in {quoted(name)}, which is "
                "not the name of a safetensors file in its own folder. Fetch it again."
            )
        names.setdefault(name, tensor)
    if len(names) > MAX_SHARDS:
        raise CheckpointError(
            f"{index} names {len(names)} shards; {MAX_SHARDS} is the limit."
        )
    for name, tensor in names.items():
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"The shard {name}, which {index} names (for tensor {quoted(tensor)}), "
                "is missing. Fetch it into the same folder."
            )
    return [index.parent / name for name in sorted(names)]


# --- Modules: what becomes of the tensors -------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A linear map, stored as one row per output feature and chunk of inputs.

    Attributes:
        relation: the table's name.
        weight, bias: names of tensors; without a bias it is 0.
        shape: the shape that the weight must have in the file.
        axes: the order of the weight's axes that puts the output features
            first and the inputs behind them: (0, 1) for a linear layer
            [out, in], (1, 0) for GPT-2's Conv1D [in, out], (0, 2, 3, 1) for a
            convolution [out, in, y, x] whose inputs are ordered by place.
        first, features: the part of the weight's output features that this
            table holds (fused projections are split); all by default.

    """

    relation: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] = (0, 1)
    first: int = 0
    features: int | None = None

    @property
    def outputs(self) -> int:
        """Output features in the table."""
        return self.shape[self.axes[0]] if self.features is None else self.features

    @property
    def inputs(self) -> int:
        """Inputs of each output feature."""
        return math.prod(self.shape) // self.shape[self.axes[0]]

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensors it needs and their shapes."""
        bias = [(self.bias, (self.shape[self.axes[0]],))] if self.bias else []
        return [(self.weight, self.shape), *bias]

    def read(self, tensors: dict[str, Tensor], begin: int, end: int) -> np.ndarray:
        """Read features begin..end-1 -> float32 [end - begin, inputs]."""
        weight = tensors[self.weight]
        begin, end = self.first + begin, self.first + end
        if self.axes[0] == 0:
            flat = weight.read(begin * self.inputs, (end - begin) * self.inputs)
            block = flat.reshape(end - begin, *self.shape[1:]).transpose(self.axes)
            return np.ascontiguousarray(block.reshape(end - begin, self.inputs))
        rows, columns = self.shape
        if weight.size * 4 <= BLOCK_BYTES:
            block = weight.read(0, weight.size).reshape(rows, columns)[:, begin:end]
        else:
            block = np.empty((rows, end - begin), dtype="<f4")
            for row in range(rows):
                block[row] = weight.read(row * columns + begin, end - begin)
        return np.ascontiguousarray(block.T)

    def read_bias(self, tensors: dict[str, Tensor]) -> np.ndarray:
        """Read the bias -> float32 [outputs]."""
        if self.bias is None:
            return np.zeros(self.outputs, dtype="<f4")
        return tensors[self.bias].read(self.first, self.outputs)


@dataclass(frozen=True)
class Norm:
    """A normalisation's scale and shift, stored as one row of two vectors."""

    relation: str
    weight: str
    bias: str
    size: int

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensors it needs and their shapes."""
        return [(self.weight, (self.size,)), (self.bias, (self.size,))]


@dataclass(frozen=True)
class Alias:
    """A module that shares another's weights, stored as a view.

    `copy` names the tensor that may hold the same weights once more.
    """

    relation: str
    target: str
    copy: str

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensors it needs: none of its own."""
        return []


Module = Matrix | Norm | Alias


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        name: as `model_type` or `_class_name` says it in config.json.
        matches: whether a config.json is of this family.
        check: raises a CheckpointError for options that are not supported.
        canonical: a tensor's name in the file -> its name in the layout, or
            None for a buffer that is no weight and is ignored.
        layout: (config, tensors by canonical name) -> the modules.
        embedding_rows: the vocabulary's size, or None without a vocabulary.
        stem: the name of its safetensors files.
        convert: how to save it as safetensors from another format.
        complete: config.json -> the same with the defaults of missing keys.
        scheduled: whether a noise schedule belongs to the checkpoint.

    """

    name: str
    matches: Callable[[dict[str, Any]], bool]
    check: Callable[[dict[str, Any]], None]
    canonical: Callable[[str], str | None]
    layout: Callable[[dict[str, Any], dict[str, Tensor]], Iterable[Module]]
    embedding_rows: Callable[[dict[str, Any]], int | None]
    stem: str
    convert: str
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
    scheduled: bool = False


def unsupported(
    key: str, value: object, supported: str, where: str = "config.json"
) -> CheckpointError:
    """The error for an option of config.json that no model computes."""
    return CheckpointError(
        f"{where} says {key} = {quoted(value)}, which is not supported "
        f"({supported}). Choose a checkpoint without it."
    )


def _whole(value: object, least: int, most: int) -> bool:
    """Whether it is a whole number from `least` to `most`."""
    return type(value) is int and least <= value <= most


def _number(value: object) -> bool:
    """Whether it is a number."""
    return type(value) in (int, float)


# --- GPT-2 --------------------------------------------------------------------


def _is_gpt2(config: dict[str, Any]) -> bool:
    if "model_type" in config:
        return config["model_type"] == "gpt2"
    return config.get("architectures") == ["GPT2LMHeadModel"]


def _check_gpt2(config: dict[str, Any]) -> None:
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        value = config.get(key)
        if type(value) is not int or not 0 < value < 1 << 31:
            shown = quoted(value) if key in config else "nothing"
            raise CheckpointError(
                f"config.json says {shown} for {key}, where a positive whole number "
                "is needed. Check that it is a GPT-2 configuration."
            )
    if config["n_embd"] % config["n_head"]:
        raise CheckpointError(
            f"config.json says n_embd = {config['n_embd']} and n_head = "
            f"{config['n_head']}, but the heads must share the width evenly. Correct "
            "the configuration."
        )
    if config["n_embd"] > MAX_VECTOR:
        raise unsupported("n_embd", config["n_embd"], f"a vector holds {MAX_VECTOR}")
    inner = config.get("n_inner")
    if inner is not None and (type(inner) is not int or not 0 < inner < 1 << 31):
        raise CheckpointError(
            f"config.json says n_inner = {quoted(inner)}, where null or a positive "
            "whole number is needed. Correct the configuration."
        )
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise unsupported("layer_norm_epsilon", epsilon, "a number between 0 and 1")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ("gelu_new", "gelu_pytorch_tanh"):
        raise unsupported(
            "activation_function", activation, "gelu_new and gelu_pytorch_tanh are"
        )
    for key, needed in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if config.get(key, needed) is not needed:
            raise unsupported(key, config[key], f"only {json.dumps(needed)} is")
    if config.get("quantization_config") is not None:
        raise unsupported(
            "quantization_config", config["quantization_config"], "none is"
        )
    if type(config.get("tie_word_embeddings", True)) is not bool:
        raise unsupported(
            "tie_word_embeddings", config["tie_word_embeddings"], "true or false is"
        )


def _canonical_gpt2(name: str) -> str | None:
    name = name.removeprefix("transformer.")
    # causal masks that old checkpoints carry as buffers
    if re.fullmatch(r"h\.[0-9]+\.attn\.(bias|masked_bias)", name):
        return None
    return name


def _layout_gpt2(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> Iterator[Module]:
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    vocabulary = config["vocab_size"]

    def conv1d(module: str, inputs: int, outputs: int) -> Matrix:
        return Matrix(
            module.replace(".", "_"),
            f"{module}.weight",
            f"{module}.bias",
            (inputs, outputs),
            (1, 0),
        )

    def norm(module: str) -> Norm:
        return Norm(
            module.replace(".", "_"), f"{module}.weight", f"{module}.bias", width
        )

    yield Matrix("wte", "wte.weight", None, (vocabulary, width))
    yield Matrix("wpe", "wpe.weight", None, (config["n_positions"], width))
    for layer in range(config["n_layer"]):
        block = f"h.{layer}"
        yield norm(f"{block}.ln_1")
        for part, projection in enumerate("qkv"):
            yield Matrix(
                f"h_{layer}_attn_c_attn_{projection}",
                f"{block}.attn.c_attn.weight",
                f"{block}.attn.c_attn.bias",
                (width, 3 * width),
                (1, 0),
                first=part * width,
                features=width,
            )
        yield conv1d(f"{block}.attn.c_proj", width, width)
        yield norm(f"{block}.ln_2")
        yield conv1d(f"{block}.mlp.c_fc", width, inner)
        yield conv1d(f"{block}.mlp.c_proj", inner, width)
    yield norm("ln_f")

    tied = config.get("tie_word_embeddings", True)
    head, wte = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    if tied and (head is None or (wte is not None and _same(head, wte))):
        yield Alias("lm_head", "wte", "lm_head.weight")
    else:
        yield Matrix("lm_head", "lm_head.weight", None, (vocabulary, width))


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same weights."""
    if (
        left.shape != right.shape
        or left.dtype not in READABLE
        or right.dtype not in READABLE
    ):
        return False
    pairs = zip(left.blocks(), right.blocks(), strict=True)
    return all(np.array_equal(a, b) for (_, a), (_, b) in pairs)


GPT2 = Family(
    name="gpt2",
    matches=_is_gpt2,
    check=_check_gpt2,
    canonical=_canonical_gpt2,
    layout=_layout_gpt2,
    embedding_rows=lambda config: config["vocab_size"],
    stem="model",
    convert="transformers: AutoModelForCausalLM.from_pretrained(SOURCE)"
    ".save_pretrained(FOLDER)",
)


# --- UNet2DModel of diffusers -------------------------------------------------

# UNet2DModel's arguments and their defaults, which config.json may leave out.
UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


def _completed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Add what diffusers takes for the keys that a file does not have.

    Keys in `_use_default_values`, which old files may have, count as missing.
    """
    unset = config.get("_use_default_values")
    unset = unset if isinstance(unset, list) else []
    return {
        **defaults,
        **{k: v for k, v in config.items() if k not in unset or k not in defaults},
    }


@dataclass(frozen=True)
class Block:
    """A block of a UNet.

    Attributes:
        path: its name.
        width: its output channels.
        resnets: how many it has.
        first, inner, last: input channels of its first resnet, of those in
            between and of the last one; up blocks have a skip's among them.
        attentions: how many it has.
        sampler: its convolution that halves or doubles the size, if any.

    """

    path: str
    width: int
    resnets: int
    first: int
    inner: int
    last: int
    attentions: int
    sampler: str | None

    def inputs(self, resnet: int) -> int:
        """Input channels of a resnet."""
        if resnet == 0:
            return self.first
        return self.last if resnet == self.resnets - 1 else self.inner


def unet_blocks(config: dict[str, Any]) -> Iterator[Block]:
    """List the blocks of a UNet in the order of computation."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    last = len(widths) - 1
    for level, (kind, width) in enumerate(
        zip(config["down_block_types"], widths, strict=True)
    ):
        yield Block(
            f"down_blocks.{level}",
            width,
            layers,
            first=widths[max(level - 1, 0)],
            inner=width,
            last=width,
            attentions=layers if kind.startswith("Attn") else 0,
            sampler="downsamplers.0.conv" if level < last else None,
        )
    middle = widths[-1]
    attentions = 1 if config["add_attention"] else 0
    yield Block("mid_block", middle, 2, middle, middle, middle, attentions, None)
    upwards = widths[::-1]
    for level, (kind, width) in enumerate(
        zip(config["up_block_types"], upwards, strict=True)
    ):
        yield Block(
            f"up_blocks.{level}",
            width,
            layers + 1,
            first=upwards[max(level - 1, 0)] + width,
            inner=width + width,
            last=width + upwards[min(level + 1, last)],
            attentions=layers + 1 if kind.startswith("Attn") else 0,
            sampler="upsamplers.0.conv" if level < last else None,
        )


def sample_size(config: dict[str, Any]) -> tuple[int, int]:
    """The height and width of a UNet's images."""
    size = config["sample_size"]
    return tuple(size) if isinstance(size, list) else (size, size)


def _check_unet(config: dict[str, Any]) -> None:
    def need(key: str, fine: bool, supported: str) -> None:
        if not fine:
            raise unsupported(key, config[key], supported)

    for key, needed in (
        ("time_embedding_type", "positional"),
        ("mid_block_type", "UNetMidBlock2D"),
        ("downsample_type", "conv"),
        ("upsample_type", "conv"),
        ("resnet_time_scale_shift", "default"),
        ("class_embed_type", None),
        ("num_class_embeds", None),
    ):
        need(key, config[key] == needed, f"only {json.dumps(needed)} is")
    need("act_fn", config["act_fn"] in ("silu", "swish"), "silu and swish are")
    for key in ("center_input_sample", "flip_sin_to_cos", "add_attention"):
        need(key, type(config[key]) is bool, "true and false are")
    scale = config["mid_block_scale_factor"]
    need("mid_block_scale_factor", _number(scale) and scale == 1, "only 1 is")
    need(
        "downsample_padding", _whole(config["downsample_padding"], 0, 1), "0 and 1 are"
    )
    epsilon = config["norm_eps"]
    need(
        "norm_eps", _number(epsilon) and 0 < epsilon < 1, "a number between 0 and 1 is"
    )
    if config.get("quantization_config") is not None:
        need("quantization_config", False, "none is")

    for key in ("in_channels", "out_channels"):
        need(
            key,
            _whole(config[key], 1, MAX_IMAGE_CHANNELS),
            f"1 to {MAX_IMAGE_CHANNELS} are",
        )
    need(
        "out_channels",
        config["out_channels"] == config["in_channels"],
        f"as many as in_channels, {config['in_channels']}, are",
    )
    need(
        "layers_per_block",
        _whole(config["layers_per_block"], 1, (1 << 31) - 2),
        "1 or more are",
    )
    _check_unet_levels(config)
    _check_unet_widths(config)


def _check_unet_levels(config: dict[str, Any]) -> None:
    """Check the lists of a UNet, one item per level, and the image's size."""
    widths = config["block_out_channels"]
    if (
        not isinstance(widths, list)
        or not widths
        or not all(_whole(width, 1, MAX_CHANNELS) for width in widths)
    ):
        raise unsupported(
            "block_out_channels",
            widths,
            f"a list of whole numbers up to {MAX_CHANNELS:,} is: a vector holds a "
            f"3 x 3 patch and has {MAX_VECTOR:,} dimensions at most",
        )
    for key, known in (
        ("down_block_types", ("DownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", ("UpBlock2D", "AttnUpBlock2D")),
    ):
        kinds = config[key]
        if not isinstance(kinds, list):
            raise unsupported(key, kinds, "a list is")
        for kind in kinds:
            if kind not in known:
                raise unsupported(key, kind, f"{' and '.join(known)} are")
        if len(kinds) != len(widths):
            raise CheckpointError(
                f"config.json has {len(kinds)} {key}, but {len(widths)} "
                "block_out_channels: each level needs one of both. Correct the "
                "configuration."
            )
    size = config["sample_size"]
    sides = size if isinstance(size, list) else [size, size]
    step = 1 << (len(widths) - 1)
    if len(sides) != 2 or not all(_whole(s, 1, MAX_SAMPLE_SIZE) for s in sides):
        raise CheckpointError(
            f"config.json says sample_size = {quoted(size)}, where the image's size "
            f"is needed: a whole number or [height, width], up to {MAX_SAMPLE_SIZE}. "
            "Enter the size that the network was trained with."
        )
    if any(side % step for side in sides):
        raise unsupported(
            "sample_size",
            size,
            f"with {len(widths)} levels it is halved {len(widths) - 1} times, so it "
            f"must be a multiple of {step}",
        )


def _check_unet_widths(config: dict[str, Any]) -> None:
    """Check what must divide, or fit a vector of, a UNet's channels."""
    widths = config["block_out_channels"]
    groups = config["norm_num_groups"]
    # the concatenated widths are sums of these, so it divides them as well
    odd = [w for w in widths if not _whole(groups, 1, MAX_CHANNELS) or w % groups]
    if odd:
        raise unsupported(
            "norm_num_groups",
            groups,
            f"a whole number that divides every width, {odd[0]} among them, is",
        )
    groups = config["attn_norm_num_groups"]
    if groups is not None and (
        not _whole(groups, 1, MAX_CHANNELS) or widths[-1] % groups
    ):
        raise unsupported(
            "attn_norm_num_groups",
            groups,
            f"null or a whole number that divides the mid block's {widths[-1]} "
            "channels is",
        )
    head = config["attention_head_dim"]
    if head is not None and not _whole(head, 1, (1 << 31) - 1):
        raise unsupported("attention_head_dim", head, "null or a whole number is")
    for block in unet_blocks(config):
        if head is not None and block.attentions and block.width % head:
            raise unsupported(
                "attention_head_dim",
                head,
                f"null or a number that divides the {block.width} channels of "
                f"{block.path} is",
            )
        widest = max(block.first, block.inner, block.last)
        if widest > MAX_CHANNELS:
            raise unsupported(
                "block_out_channels",
                widths,
                f"{block.path} joins its input and a skip connection to {widest:,} "
                f"channels, of which {MAX_CHANNELS:,} are: a vector holds a 3 x 3 "
                f"patch and has {MAX_VECTOR:,} dimensions at most",
            )
    embedding = config["time_embedding_dim"]
    if embedding is not None and not _whole(embedding, 1, MAX_VECTOR):
        raise unsupported(
            "time_embedding_dim", embedding, f"null or 1 to {MAX_VECTOR:,} are"
        )
    shift = config["freq_shift"]
    if not _number(shift) or shift == widths[0] // 2:
        raise unsupported(
            "freq_shift",
            shift,
            "a number other than half of the first width, by whose difference the "
            "frequencies are divided, is",
        )


# Names in old checkpoints, which diffusers reads as well.
OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def _canonical_unet(name: str) -> str | None:
    old = re.fullmatch(
        rf"(.+\.attentions\.[0-9]+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)", name
    )
    if old:
        return f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"
    # a second name of `conv` in old checkpoints, which diffusers ignores
    if re.fullmatch(r".+\.(down|up)samplers\.0\.Conv2d_0\.(weight|bias)", name):
        return None
    return name


def _layout_unet(config: dict[str, Any], _: dict[str, Tensor]) -> Iterator[Module]:
    def matrix(module: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> Matrix:
        return Matrix(
            module.replace(".", "_"),
            f"{module}.weight",
            f"{module}.bias",
            shape,
            axes,
        )

    def linear(module: str, inputs: int, outputs: int) -> Matrix:
        return matrix(module, (outputs, inputs), (0, 1))

    def conv(module: str, inputs: int, outputs: int, side: int = 3) -> Matrix:
        # an output feature's inputs by place and then by channel: y, x, channel
        return matrix(module, (outputs, inputs, side, side), (0, 2, 3, 1))

    def norm(module: str, width: int) -> Norm:
        return Norm(
            module.replace(".", "_"), f"{module}.weight", f"{module}.bias", width
        )

    channels, width = config["in_channels"], config["block_out_channels"][0]
    embedding = config["time_embedding_dim"] or 4 * width
    yield conv("conv_in", channels, width)
    yield linear("time_embedding.linear_1", width, embedding)
    yield linear("time_embedding.linear_2", embedding, embedding)
    for block in unet_blocks(config):
        for place in range(block.resnets):
            resnet, inputs = f"{block.path}.resnets.{place}", block.inputs(place)
            yield norm(f"{resnet}.norm1", inputs)
            yield conv(f"{resnet}.conv1", inputs, block.width)
            yield linear(f"{resnet}.time_emb_proj", embedding, block.width)
            yield norm(f"{resnet}.norm2", block.width)
            yield conv(f"{resnet}.conv2", block.width, block.width)
            if inputs != block.width:
                yield conv(f"{resnet}.conv_shortcut", inputs, block.width, 1)
            if place < block.attentions:
                attention = f"{block.path}.attentions.{place}"
                yield norm(f"{attention}.group_norm", block.width)
                for part in ("to_q", "to_k", "to_v", "to_out.0"):
                    yield linear(f"{attention}.{part}", block.width, block.width)
        if block.sampler:
            yield conv(f"{block.path}.{block.sampler}", block.width, block.width)
    yield norm("conv_norm_out", width)
    yield conv("conv_out", width, channels)


UNET2D = Family(
    name="UNet2DModel",
    matches=lambda config: config.get("_class_name") == "UNet2DModel",
    check=_check_unet,
    canonical=_canonical_unet,
    layout=_layout_unet,
    embedding_rows=lambda _: None,
    stem="diffusion_pytorch_model",
    convert="diffusers: DDPMPipeline.from_pretrained(SOURCE).save_pretrained(FOLDER)",
    complete=lambda config: _completed(config, UNET_DEFAULTS),
    scheduled=True,
)

FAMILIES = [GPT2, UNET2D]


def family_of(config: dict[str, Any]) -> Family:
    """Find the family that a config.json belongs to.

    Raises:
        CheckpointError: none of FAMILIES.

    """
    for family in FAMILIES:
        if family.matches(config):
            return family
    kind = config.get("model_type", config.get("_class_name"))
    raise CheckpointError(
        f"config.json says that the network is of type {quoted(kind)}, which is not "
        f"supported. Choose one of: {', '.join(family.name for family in FAMILIES)}."
    )


# --- Pipeline and scheduler ---------------------------------------------------

PIPELINE_INDEX = "model_index.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")

# The schedulers' arguments and their defaults, which the file may leave out.
_SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {**_SCHEDULER_DEFAULTS, "variance_type": "fixed_small"},
    "DDIMScheduler": {**_SCHEDULER_DEFAULTS, "set_alpha_to_one": True},
}


@dataclass(frozen=True)
class Parts:
    """Where a checkpoint's parts are.

    Attributes:
        network: the folder of config.json and the weights.
        root: the folder that the scheduler belongs to, a pipeline's if any.
        scheduler: the class of the scheduler that the pipeline asks for.

    """

    network: Path
    root: Path
    scheduler: str | None


def find_parts(folder: Path) -> Parts:
    """Find the parts of a checkpoint: a pipeline's folder, or one folder of all.

    As in diffusers, a pipeline's part is in a folder of its name, or beside
    model_index.json if there is none. A pipeline's own `unet` folder stands for
    the pipeline.

    Raises:
        CheckpointError: a pipeline of another kind.

    """
    if (folder / PIPELINE_INDEX).is_file():
        network = folder / "unet"
        return Parts(
            network if network.is_dir() else folder, folder, check_pipeline(folder)
        )
    place = folder.resolve()
    above = place.parent
    if place.name == "unet" and (
        (above / PIPELINE_INDEX).is_file() or (above / "scheduler").is_dir()
    ):
        return Parts(folder, above, check_pipeline(above))
    return Parts(folder, folder, None)


def check_pipeline(folder: Path) -> str | None:
    """Check model_index.json, if there is one.

    Returns:
        The class of the scheduler that the pipeline samples with.

    Raises:
        CheckpointError: a pipeline of another kind.

    """
    path = folder / PIPELINE_INDEX
    if not path.is_file():
        return None
    content = read_json(path, MAX_CONFIG_BYTES)
    kind = content.get("_class_name")
    supported = f"Choose one of: {', '.join(PIPELINES)}."
    # [null, null] is an optional part that is absent; what is no list is an option
    parts = {
        name: value
        for name, value in content.items()
        if not name.startswith("_") and isinstance(value, list) and any(value)
    }
    others = [name for name in parts if name not in ("unet", "scheduler")]
    if others:
        raise CheckpointError(
            f"{path} says that the pipeline {quoted(kind)} has the part(s) "
            f"{', '.join(map(quoted, others[:5]))}{' ...' if others[5:] else ''}, "
            "which are not supported: only a UNet2DModel that computes pixels and its "
            f"scheduler are (latent diffusion needs a VAE). {supported}"
        )
    for name in ("unet", "scheduler"):
        value = parts.get(name)
        if value is None or len(value) != 2 or value[0] != "diffusers":
            raise CheckpointError(
                f"{path} says {quoted(value)} for {name}, where a class of diffusers "
                f"is needed. {supported}"
            )
    if parts["unet"][1] != "UNet2DModel":
        raise CheckpointError(
            f"{path} says that the unet is of class {quoted(parts['unet'][1])}, which "
            f"is not supported (UNet2DModel is). {supported}"
        )
    if kind not in PIPELINES:
        raise CheckpointError(
            f"{path} says that the pipeline is of class {quoted(kind)}, which is not "
            f"supported. {supported}"
        )
    # DDIMPipeline makes a DDIMScheduler of whatever it is given
    return "DDIMScheduler" if kind == "DDIMPipeline" else parts["scheduler"][1]


def read_scheduler(parts: Parts) -> dict[str, Any]:
    """Read scheduler_config.json, complete it with the defaults and check it.

    Raises:
        CheckpointError: missing, or a noise schedule that is not supported.

    """
    name = "scheduler_config.json"
    for folder in (parts.root / "scheduler", parts.root, parts.network):
        path = folder / name
        if path.is_file():
            break
    else:
        raise CheckpointError(
            f"{parts.root} has no {name}. The noise schedule is part of the "
            f"checkpoint: put the file that it was trained with in {parts.root} as "
            f"scheduler/{name} or {name}."
        )
    config = read_json(path, MAX_CONFIG_BYTES)
    _check_value(config, path)
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise CheckpointError(
            f"{path} is of class {quoted(kind)}, which is not supported "
            f"({' and '.join(SCHEDULERS)} are). If the pipeline's schedule is one of "
            "betas, save it with one of them: DDPMPipeline(unet=pipeline.unet, "
            "scheduler=DDIMScheduler.from_config(pipeline.scheduler.config))"
            ".save_pretrained(FOLDER), then load FOLDER."
        )
    if parts.scheduler not in (None, kind):
        raise CheckpointError(
            f"{parts.root / PIPELINE_INDEX} asks for a scheduler of class "
            f"{quoted(parts.scheduler)}, but {path} is of class {quoted(kind)}. Save "
            "the pipeline again, with diffusers: "
            "DiffusionPipeline.from_pretrained(SOURCE).save_pretrained(FOLDER), then "
            "load FOLDER."
        )
    config = _completed(config, SCHEDULERS[kind])
    _check_scheduler(config, str(path))
    return config


def _check_scheduler(config: dict[str, Any], where: str) -> None:
    def need(key: str, fine: bool, supported: str) -> None:
        if not fine:
            raise unsupported(key, config[key], supported, where)

    steps = config["num_train_timesteps"]
    need(
        "num_train_timesteps",
        _whole(steps, 1, MAX_TIMESTEPS),
        f"1 to {MAX_TIMESTEPS:,} are",
    )
    for key, known in (
        ("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2")),
        ("prediction_type", ("epsilon", "sample", "v_prediction")),
        ("timestep_spacing", ("leading", "trailing", "linspace")),
        ("variance_type", ("fixed_small", "fixed_large")),
    ):
        # a DDIMScheduler ignores variance_type
        if key != "variance_type" or config["_class_name"] == "DDPMScheduler":
            need(key, config[key] in known, f"{', '.join(known)} are")
    start, end = config["beta_start"], config["beta_end"]
    need("beta_end", _number(end) and 0 < end < 1, "a number between 0 and 1 is")
    need(
        "beta_start",
        _number(start) and 0 < start <= end,
        f"a number above 0 and up to beta_end, {end}, is",
    )
    need("trained_betas", config["trained_betas"] is None, "only null is")
    for key in ("thresholding", "rescale_betas_zero_snr"):
        need(key, config[key] is False, "only false is")
    need("clip_sample", type(config["clip_sample"]) is bool, "true and false are")
    limit = config["clip_sample_range"]
    need("clip_sample_range", _number(limit) and limit > 0, "a number above 0 is")
    need(
        "steps_offset",
        _whole(config["steps_offset"], 0, steps - 1),
        f"0 to {steps - 1}, less than num_train_timesteps, are",
    )
    if config["_class_name"] == "DDIMScheduler":
        need(
            "set_alpha_to_one",
            type(config["set_alpha_to_one"]) is bool,
            "true and false are",
        )
    # diffusers ignores it by now and would take the output for noise
    if config.get("predict_epsilon", True) is not True:
        need("predict_epsilon", False, 'prediction_type = "sample" says the same')


# --- Tokenizer ----------------------------------------------------------------


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE.

    Attributes:
        vocabulary: (token_id, the token's bytes, special) by token_id. Special
            tokens are matched whole in a text and are never made by merges.
        merges: (left_id, right_id, rank, token_id) by rank; 0 is merged first.

    """

    vocabulary: list[tuple[int, bytes, bool]]
    merges: list[tuple[int, int, int, int]]


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def read_tokenizer(folder: Path, config: dict[str, Any], rows: int) -> Tokenizer | None:
    """Read the tokenizer from tokenizer.json, or from vocab.json and merges.txt.

    Args:
        folder: the checkpoint.
        config: its config.json, for the ids of special tokens.
        rows: how many tokens the embedding has.

    Returns:
        None if the folder has no tokenizer.

    Raises:
        CheckpointError: incomplete, not a byte-level BPE as GPT-2's, or an id
            that the embedding does not have.

    """
    fast, slow = folder / "tokenizer.json", folder / "vocab.json"
    merges_txt = folder / "merges.txt"
    if fast.is_file():
        where = fast
        ids, pairs, added = _read_fast(fast)
    elif slow.is_file() and merges_txt.is_file():
        where = slow
        ids = read_json(slow, MAX_TOKENIZER_BYTES)
        pairs, added = _read_merges(merges_txt), {}
    elif slow.is_file() or merges_txt.is_file():
        missing = merges_txt if slow.is_file() else slow
        raise CheckpointError(
            f"{missing} is missing: the tokenizer needs vocab.json and merges.txt. "
            "Fetch it, or load with --no-tokenizer and give token ids as prompts."
        )
    else:
        return None

    added = {**added, **_special_tokens(folder, ids, added)}
    ids = {**ids, **added}
    _check_ids(ids, where, rows)
    made = {ids.get(left + right) for left, right in pairs}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = config.get(key)
        for text, number in ids.items():
            if number == token_id and len(text) > 1 and number not in made:
                added[text] = number

    alphabet = byte_alphabet()
    vocabulary = []
    for text, token_id in ids.items():
        if text not in added and all(character in alphabet for character in text):
            token = bytes(alphabet[character] for character in text)
        else:
            # as `tokenizers` decodes what is not made of its alphabet
            token = _utf8(text, where)
        vocabulary.append((token_id, token, text in added))
    return Tokenizer(sorted(vocabulary), _merge_ids(pairs, ids, where))


def _utf8(text: str, where: Path) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{where} holds the token {quoted(text)}, which is not valid Unicode. "
            "Fetch the tokenizer again."
        ) from None


def _check_ids(ids: dict[str, Any], where: Path, rows: int) -> None:
    owner: dict[int, str] = {}
    for text, token_id in ids.items():
        if type(token_id) is not int or token_id < 0:
            raise CheckpointError(
                f"{where} gives token {quoted(text)} the id {quoted(token_id)}, where "
                "a whole number is needed. Fetch the tokenizer again."
            )
        if token_id >= rows:
            raise CheckpointError(
                f"{where} gives token {quoted(text)} the id {token_id}, but the "
                f"embedding wte has {rows} rows: the vocabulary does not fit the "
                "checkpoint. Use the tokenizer that belongs to it, or load with "
                "--no-tokenizer and give token ids as prompts."
            )
        if token_id in owner:
            raise CheckpointError(
                f"{where} gives the id {token_id} to two tokens, "
                f"{quoted(owner[token_id])} and {quoted(text)}. Fetch the tokenizer "
                "again."
            )
        owner[token_id] = text


def _merge_ids(
    pairs: list[tuple[str, str]], ids: dict[str, int], where: Path
) -> list[tuple[int, int, int, int]]:
    merges: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(pairs):
        for token in (left, right, left + right):
            if token not in ids:
                raise CheckpointError(
                    f"Merge {rank} of {where.parent}, {quoted(left)} with "
                    f"{quoted(right)}, needs the token {quoted(token)}, which the "
                    "vocabulary lacks: they do not belong together. Fetch both again."
                )
        # the last of equal pairs counts, as in `tokenizers`
        merges[ids[left], ids[right]] = (rank, ids[left + right])
    return sorted(
        ((left, right, rank, token) for (left, right), (rank, token) in merges.items()),
        key=lambda merge: merge[2],
    )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        text = read_bytes(path, MAX_TOKENIZER_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 (byte {error.start}). Fetch it again."
        ) from None
    pairs = []
    # not splitlines(), which also splits at characters that tokens can hold
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise CheckpointError(
                f"{path}, line {number}: {quoted(line)} is not a pair of tokens. "
                "Fetch the file again."
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _read_fast(
    path: Path,
) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Read tokenizer.json: token ids, merges, and the ids of added tokens."""
    content = read_json(path, MAX_TOKENIZER_BYTES)

    def refuse(what: str, value: object) -> CheckpointError:
        return CheckpointError(
            f"{path}: {what} is {quoted(value)}, but only a byte-level BPE as GPT-2's "
            "is supported. Choose another checkpoint, or load with --no-tokenizer and "
            "give token ids as prompts."
        )

    def part(name: str) -> dict[str, Any]:
        value = content.get(name)
        if value is not None and not isinstance(value, dict):
            raise refuse(name, value)
        return value or {}

    def items(values: object, what: str) -> list[Any]:
        if values is not None and not isinstance(values, list):
            raise refuse(what, values)
        return values or []

    model, before = part("model"), part("pre_tokenizer")
    if model.get("type", "BPE") != "BPE":
        raise refuse("model.type", model["type"])
    for key in ("byte_fallback", "ignore_merges", "dropout"):
        if model.get(key):
            raise refuse(f"model.{key}", model[key])
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise refuse(f"model.{key}", model[key])
    if part("normalizer"):
        raise refuse("normalizer", content["normalizer"])
    if before.get("type") != "ByteLevel":
        raise refuse("pre_tokenizer.type", before.get("type"))
    if before.get("add_prefix_space"):
        raise refuse("pre_tokenizer.add_prefix_space", True)
    if not before.get("use_regex", True):
        raise refuse("pre_tokenizer.use_regex", False)
    after = part("post_processor")
    if after.get("type") == "TemplateProcessing":
        single = after.get("single")
        steps = single if isinstance(single, list) else [single]
        if any(not isinstance(step, dict) or "Sequence" not in step for step in steps):
            raise refuse("post_processor.single", single)
    elif after.get("type", "ByteLevel") != "ByteLevel":
        raise refuse("post_processor.type", after["type"])

    ids = model.get("vocab")
    if not isinstance(ids, dict):
        raise refuse("model.vocab", type(ids).__name__)
    pairs = []
    for rank, merge in enumerate(items(model.get("merges"), "model.merges")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(token, str) for token in parts)
        ):
            raise CheckpointError(
                f"{path}: merge {rank}, {quoted(merge)}, is not a pair of tokens. "
                "Fetch the file again."
            )
        pairs.append((parts[0], parts[1]))
    added = {}
    for entry in items(content.get("added_tokens"), "added_tokens"):
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(
                f"{path}: the added token {quoted(entry)} has no content. Fetch the "
                "file again."
            )
        added[entry["content"]] = entry.get("id")
    return ids, pairs, added


def _special_tokens(
    folder: Path, ids: dict[str, int], added: dict[str, int]
) -> dict[str, int]:
    """Find special tokens that only the files beside the vocabulary name.

    Those without an id are left out: nothing in the checkpoint could make them.
    """
    result: dict[str, int] = {}
    path = folder / "added_tokens.json"
    if path.is_file():
        result.update(read_json(path, MAX_TOKENIZER_BYTES))
    texts: list[object] = []
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path, MAX_TOKENIZER_BYTES)
        if (
            content.get("add_prefix_space") is True
            or content.get("add_bos_token") is True
        ):
            raise CheckpointError(
                f"{path} asks for add_prefix_space or add_bos_token, which are not "
                "supported: the token ids would differ. Set both to false if the "
                "checkpoint allows it, or load with --no-tokenizer."
            )
        texts += [content.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "pad")]
        extra = content.get("additional_special_tokens")
        texts += extra if isinstance(extra, list) else []
        decoder = content.get("added_tokens_decoder")
        for token_id, entry in decoder.items() if isinstance(decoder, dict) else ():
            text = entry.get("content") if isinstance(entry, dict) else None
            if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", token_id):
                result[text] = int(token_id)
    known = {**ids, **added, **result}
    # transformers' GPT2Tokenizer has this one whatever the files say
    for text in [*texts, "<|endoftext|>"]:
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in known:
            result[text] = known[text]
    return result


# --- The whole checkpoint -----------------------------------------------------


@dataclass
class Checkpoint:
    """A checkpoint whose every part was checked; `close` it after use.

    Attributes:
        folder: where its files are.
        family: what kind of network it is.
        config: config.json, completed with the family's defaults.
        tensors: the weights by the layout's names, buffers left out.
        modules: what to make of them, in the network's order.
        tokenizer: None if there is none.
        scheduler: scheduler_config.json, completed with its class's defaults;
            None if the family has none.
        digest: SHA-256 in hexadecimal of config, weights, tokenizer and scheduler.

    """

    folder: Path
    family: Family
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    modules: list[Module]
    tokenizer: Tokenizer | None
    scheduler: dict[str, Any] | None
    digest: str
    _files: ExitStack = field(repr=False)

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
        folder: config.json, safetensors and, maybe, a tokenizer; or a pipeline
            of diffusers.
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
    parts = find_parts(folder)
    path = parts.network / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Give the folder of a checkpoint as transformers or "
            "diffusers saves it: config.json beside the safetensors file, or a "
            f"pipeline's folder with its {PIPELINE_INDEX}."
        )
    config = read_json(path, MAX_CONFIG_BYTES)
    _check_value(config, path)
    family = family_of(config)
    config = family.complete(config)
    family.check(config)
    scheduler = read_scheduler(parts) if family.scheduled else None

    with ExitStack() as files:
        paths = find_weights(parts.network, family.stem, family.convert)
        found = _open_tensors(paths, files)
        tensors = _canonical(found, family)
        modules = _check_layout(config, family, tensors)
        rows = family.embedding_rows(config)
        texts = (
            read_tokenizer(folder, config, rows)
            if tokenizer and rows is not None
            else None
        )
        checkpoint = Checkpoint(
            folder, family, config, tensors, modules, texts, scheduler, "", files
        )
        checkpoint.digest = _check_weights(checkpoint, progress)
        checkpoint._files = files.pop_all()
        return checkpoint


def _check_value(value: object, path: Path, depth: int = 0) -> None:
    """Refuse what JSON allows and a database can't store as jsonb."""
    if depth > MAX_CONFIG_DEPTH:
        raise CheckpointError(
            f"{path} is nested more than {MAX_CONFIG_DEPTH} deep. Correct the "
            "configuration."
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, path, depth + 1)
            _check_value(item, path, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, path, depth + 1)
    elif isinstance(value, str):
        if "\0" in value or any(
            "\ud800" <= character <= "\udfff" for character in value
        ):
            raise CheckpointError(
                f"{path} holds {quoted(value)}: a zero character or half a surrogate "
                "pair can't be stored. Correct the configuration."
            )
    elif isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{path} holds a number that is too large. Correct it.")


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


def _canonical(found: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
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


def _check_layout(
    config: dict[str, Any], family: Family, tensors: dict[str, Tensor]
) -> list[Module]:
    """Compare the tensors with the layout; return the modules."""
    modules: list[Module] = []
    relations: set[str] = set()
    used: set[str] = set()
    where = next(iter(tensors.values())).path.parent if tensors else "The checkpoint"
    # The layout is consumed as it is checked: a configuration that claims a
    # million layers fails at the first that is missing.
    for module in family.layout(config, tensors):
        for name, shape in module.tensors():
            tensor = tensors.get(name)
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
            used.add(name)
        if isinstance(module, Alias):
            used.add(module.copy)
        if len(module.relation) > MAX_IDENTIFIER or module.relation in relations:
            raise CheckpointError(
                f"{where}: the module {module.relation} can't be a table of its own "
                "(its name is too long or not unique). Choose another checkpoint."
            )
        relations.add(module.relation)
        modules.append(module)
    unexpected = [tensor.name for name, tensor in tensors.items() if name not in used]
    if unexpected:
        raise CheckpointError(
            f"{where} has {len(unexpected)} tensor(s) that a {family.name} network of "
            f"this config.json does not have: {', '.join(map(quoted, unexpected[:5]))}"
            f"{' ...' if len(unexpected) > 5 else ''}. Use the config.json that "
            "belongs to the checkpoint, or a checkpoint without them."
        )
    return modules


def _check_weights(
    checkpoint: Checkpoint, progress: Callable[[int], Progress] | None
) -> str:
    """Look at every weight: refuse NaN and infinity; return the digest."""
    stored = sorted(checkpoint.stored, key=lambda tensor: (tensor.path, tensor.start))
    step = progress(sum(t.nbytes for t in stored)) if progress else lambda _: None
    digest = hashlib.sha256()
    digest.update(json.dumps(checkpoint.config, sort_keys=True).encode())
    if checkpoint.tokenizer:
        digest.update(repr(checkpoint.tokenizer.vocabulary).encode())
        digest.update(repr(checkpoint.tokenizer.merges).encode())
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
            parts.append(pool.submit(hashlib.sha256, values))
            if len(parts) > HASHED_BLOCKS:
                digest.update(parts.popleft().result().digest())
            step(len(values) * DTYPE_BYTES[tensor.dtype])
        for part in parts:
            digest.update(part.result().digest())
    return digest.hexdigest()
