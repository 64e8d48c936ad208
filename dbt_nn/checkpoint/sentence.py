"""A sentence encoder as sentence-transformers saves it: what follows its transformer.

    modules.json                        the modules, in their order
    config_sentence_transformers.json   prompts, and how to compare vectors
    sentence_bert_config.json           how long a text may be
    config.json, model.safetensors      the transformer and its tokenizer, here or
                                        in a folder such as 0_Transformer
    1_Pooling/config.json               one vector of all tokens'
    2_Dense/                            a linear layer, with weights of its own
    3_Normalize/                        to length 1

`read_modules` finds the parts. `sentence_keys` has what they add to config.json, so
that one set of keys says all that is computed. A checkpoint that has no modules.json
gets the values that sentence-transformers takes for it, and so do a cross-encoder and
a classifier, which have labels in place of a vector.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from dbt_nn.checkpoint.config import MAX_CONFIG_BYTES, check_value, unsupported
from dbt_nn.checkpoint.files import (
    CheckpointError,
    quoted,
    read_json,
    read_json_list,
)
from dbt_nn.networks.config import MAX_INTEGER, MAX_VECTOR, Config, whole

MODULES = "modules.json"
ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
PROMPTS = "config_sentence_transformers.json"
# Old ones are named after the network.
TRANSFORMER = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
]
# Before sentence-transformers 5.4 each pooling had a key of its own.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What sentence-transformers hands to transformers, and what changes no result.
ARGUMENTS = [
    f"{part}_{word}"
    for part, words in {
        "model": ("args", "kwargs"),
        "tokenizer": ("args",),
        "processor": ("kwargs",),
        "config": ("args", "kwargs"),
    }.items()
    for word in words
]
HARMLESS = {
    *("add_pooling_layer", "attn_implementation", "dtype", "torch_dtype"),
    *("revision", "trust_remote_code", "use_fast"),
}
# Their position embeddings begin after the padding token's id.
PADDED_POSITIONS = {"camembert", "roberta", "xlm-roberta"}

LINEAR = "torch.nn.modules.linear"
ACTIVATION = "torch.nn.modules.activation"
ACTIVATIONS: dict[str, str | None] = {
    f"{LINEAR}.Identity": None,
    f"{ACTIVATION}.Tanh": "tanh",
    f"{ACTIVATION}.ReLU": "relu",
    f"{ACTIVATION}.GELU": "gelu",
    f"{ACTIVATION}.Sigmoid": "sigmoid",
}
# Of a classifier's logits.
SCORES = {f"{LINEAR}.Identity": "identity", f"{ACTIVATION}.Sigmoid": "sigmoid"}
SENTENCE = "sentence_embedding"
CLASSIFIER = "ForSequenceClassification"


class Transformer(Config):
    """The keys of sentence_bert_config.json that decide what is computed."""

    transformer_task: Literal["feature-extraction", "sequence-classification"] = (
        "feature-extraction"
    )
    max_seq_length: int | None = whole(None)
    do_lower_case: bool = False
    modality_config: Any = None
    query_length: None = Field(None, description="only null is")
    document_length: None = Field(None, description="only null is")
    query_expansion: None = Field(None, description="only null is")
    processing_kwargs: None = Field(None, description="only null is")
    tokenizer_name_or_path: None = Field(None, description="only null is")

    @property
    def is_classifier(self) -> bool:
        return self.transformer_task == "sequence-classification"


class Pooling(Config):
    """The keys of 1_Pooling/config.json."""

    embedding_dimension: int = whole(most=MAX_VECTOR)
    pooling_mode: Literal["mean", "cls", "lasttoken", "max"] = "mean"
    include_prompt: bool = True


class Dense(Config):
    """The keys of 2_Dense/config.json."""

    in_features: int = whole(most=MAX_VECTOR)
    out_features: int = whole(most=MAX_VECTOR)
    bias: bool = True
    activation_function: Literal[tuple(ACTIVATIONS)] = f"{ACTIVATION}.Tanh"
    module_input_name: Literal["sentence_embedding"] = SENTENCE
    module_output_name: Literal["sentence_embedding"] | None = None
    use_residual: Literal[False] = False


class Normalize(Config):
    """The keys of 3_Normalize/config.json."""

    module_input_name: Literal["sentence_embedding"] = SENTENCE
    module_output_name: Literal["sentence_embedding"] | None = None


class Prompts(Config):
    """The keys of config_sentence_transformers.json."""

    model_type: Literal["SentenceTransformer", "CrossEncoder"] = "SentenceTransformer"
    prompts: dict[str, str] = Field({}, description="an object of texts is")
    default_prompt_name: str | None = Field(None, description="null or a text is")
    similarity_fn_name: Literal["cosine", "dot", "euclidean", "manhattan"] | None = None
    truncate_dim: None = Field(None, description="only null is")
    activation_fn: Any = None


class TokenizerLimit(Config):
    """The keys of tokenizer_config.json that say where a text is cut."""

    model_max_length: float | None = Field(
        None, ge=1, description="null or a number above 0 is"
    )
    truncation_side: Literal["right"] = "right"


class Labels(Config):
    """The keys of config.json that belong to a classifier."""

    id2label: dict[str, str] | None = Field(
        None, min_length=1, description='an object from "0", "1" … to labels is'
    )
    problem_type: (
        Literal[
            "regression", "single_label_classification", "multi_label_classification"
        ]
        | None
    ) = None


@dataclass(frozen=True)
class Modules:
    """The folders of a checkpoint's modules; None for one that it lacks.

    Attributes:
        transformer: of config.json, the weights and the tokenizer.

    """

    transformer: Path
    pooling: Path | None = None
    dense: Path | None = None
    normalize: Path | None = None


def read_modules(folder: Path) -> Modules | None:
    """Find the modules of modules.json; None without one.

    Raises:
        CheckpointError: modules that are not computed, or a folder elsewhere.

    """
    path = folder / MODULES
    if not path.is_file():
        return None
    found: dict[str, Path] = {}
    for entry in read_json_list(path, MAX_CONFIG_BYTES):
        entry = entry if isinstance(entry, dict) else {}
        kind, place = entry.get("type"), entry.get("path")
        name = str(kind).rpartition(".")[2]
        expected = ORDER[ORDER.index([*found][-1]) + 1 :] if found else ORDER[:1]
        if not str(kind).startswith("sentence_transformers.") or name not in expected:
            raise CheckpointError(
                f"{path} has the module {quoted(kind)}"
                f"{f' after {[*found][-1]}' if found else ' first'}, which is not "
                "supported (a Transformer alone is, or with a Pooling, at most one "
                "Dense and at most one Normalize after it, in this order). Choose a "
                "checkpoint without it."
            )
        # a folder's name, and nothing that leads out of the checkpoint
        if not isinstance(place, str) or not re.fullmatch(r"|\w[\w. -]*", place):
            raise CheckpointError(
                f"{path} says that the module {name} is in {quoted(place)}, where the "
                "name of a folder beside it is needed. Fetch the checkpoint again."
            )
        found[name] = folder / place
    if not found:
        raise CheckpointError(f"{path} has no module. Fetch the checkpoint again.")
    return Modules(**{name.lower(): place for name, place in found.items()})


def sentence_keys(
    folder: Path, modules: Modules | None, config: dict[str, Any], kind: str
) -> dict[str, Any]:
    """What the files beside config.json add to it.

    Args:
        folder: of the checkpoint.
        modules: what `read_modules` found there.
        config: config.json, with the network's canonical keys.
        kind: of the network.

    Returns:
        For sentence embeddings pooling_mode, normalize_embeddings, dense_*, prompts,
        default_prompt_name and similarity_fn_name; for a classifier num_labels,
        id2label, problem_type and activation_fn; for both max_seq_length and
        do_lower_case.

    Raises:
        CheckpointError: what sentence-transformers computes and no model here does.

    """
    network = modules.transformer if modules else folder
    settings = _read_transformer(network) if modules else Transformer()
    path = folder / PROMPTS
    # without modules.json, sentence-transformers does not look at this file
    content = _content(path) if modules else {}
    prompts = Prompts.read(content, str(path))
    keys = {
        "max_seq_length": _max_seq_length(network, settings, config, kind),
        "do_lower_case": settings.do_lower_case,
    }
    names = config.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    if settings.is_classifier or (
        not modules and any(name.endswith(CLASSIFIER) for name in names)
    ):
        return keys | _labels(config, network, prompts, path)
    if not modules:
        causal = bool(names) and names[0].endswith("ForCausalLM")
        keys["pooling_mode"] = "lasttoken" if causal else "mean"
    elif modules.pooling and prompts.model_type != "CrossEncoder":
        width = config.get("hidden_size")
        keys["pooling_mode"] = _pooling_mode(modules.pooling, width, prompts)
    else:
        raise CheckpointError(
            f"{folder / MODULES} has neither a Pooling, which makes a text's vector, "
            "nor a Transformer for sequence-classification, which scores texts. Choose "
            "another checkpoint."
        )
    return (
        keys
        | _dense(modules.dense if modules else None, config.get("hidden_size"))
        | {"normalize_embeddings": _is_normalized(modules)}
        | _prompts(prompts, path)
    )


def _content(path: Path) -> dict[str, Any]:
    """A JSON file's content; {} without the file, as in sentence-transformers."""
    if not path.is_file():
        return {}
    content = read_json(path, MAX_CONFIG_BYTES)
    check_value(content, path)
    return content


C = TypeVar("C", bound=Config)


def _read(kind: type[C], folder: Path) -> C:
    """A module's config.json."""
    path = folder / "config.json"
    return kind.read(_content(path), str(path))


def _read_transformer(folder: Path) -> Transformer:
    """sentence_bert_config.json, or the file of an old name."""
    path = next(
        (folder / name for name in TRANSFORMER if (folder / name).is_file()),
        folder / TRANSFORMER[0],
    )
    content = _content(path)
    settings = Transformer.read(content, str(path))
    for key in ARGUMENTS:
        value = content.get(key) or {}
        if not isinstance(value, dict) or value.keys() - HARMLESS:
            known = ", ".join(sorted(HARMLESS))
            raise unsupported(key, value, f"{known} are", str(path))
    output = "logits" if settings.is_classifier else "last_hidden_state"
    text = {"method": "forward", "method_output_name": output}
    if settings.modality_config not in (None, {"text": text}):
        raise unsupported(
            "modality_config",
            settings.modality_config,
            f"text by forward and {output} is",
            str(path),
        )
    return settings


def _max_seq_length(
    folder: Path, settings: Transformer, config: dict[str, Any], kind: str
) -> int:
    """The tokens of the longest text, special ones with it; more are cut.

    sentence-transformers goes by the first that is there: sentence_bert_config.json,
    tokenizer_config.json, and how many positions the network has. It fails where a text
    has more tokens than that, so no text may here.
    """
    positions = config.get("max_position_embeddings")
    positions = positions if type(positions) is int else MAX_INTEGER
    if kind in PADDED_POSITIONS:
        padding = config.get("pad_token_id", 1)
        positions -= 1 + (padding if type(padding) is int else 1)
    path = folder / "tokenizer_config.json"
    content = _content(path)
    # its older name
    content = {"model_max_length": content.get("max_len"), **content}
    limit = TokenizerLimit.read(content, str(path)).model_max_length
    given = settings.max_seq_length or limit or positions
    return int(min(given, positions))


def _pooling_mode(folder: Path, width: Any, prompts: Prompts) -> str:
    """How a text's vector is made of its tokens'."""
    path = folder / "config.json"
    content = _content(path)
    if "word_embedding_dimension" in content:  # its older name
        content.setdefault("embedding_dimension", content["word_embedding_dimension"])
    chosen = content.get("pooling_mode")
    if "pooling_mode" not in content and content.keys() & POOLING_KEYS.keys():
        chosen = [mode for key, mode in POOLING_KEYS.items() if content.get(key)]
    if isinstance(chosen, list):  # several are concatenated
        content["pooling_mode"] = (
            chosen[0] if len(chosen) == 1 else chosen if chosen else "mean"
        )
    pooling = Pooling.read(content, str(path))
    _check_width("embedding_dimension", pooling.embedding_dimension, width, path)
    if not pooling.include_prompt and any(prompts.prompts.values()):
        raise unsupported(
            "include_prompt",
            False,
            f"true is, where {PROMPTS} has prompts",
            str(path),
        )
    return pooling.pooling_mode


def _dense(folder: Path | None, width: Any) -> dict[str, Any]:
    """The linear layer after pooling."""
    if folder is None:
        return dict.fromkeys(["dense_in_features", "dense_out_features"])
    dense = _read(Dense, folder)
    _check_width("in_features", dense.in_features, width, folder / "config.json")
    return {
        "dense_in_features": dense.in_features,
        "dense_out_features": dense.out_features,
        "dense_bias": dense.bias,
        "dense_activation": ACTIVATIONS[dense.activation_function],
    }


def _check_width(key: str, value: int, width: Any, path: Path) -> None:
    """Compare a module's width with the transformer's."""
    if type(width) is int and value != width:
        supported = f"{width}, the hidden_size of the transformer's config.json, is"
        raise unsupported(key, value, supported, str(path))


def _is_normalized(modules: Modules | None) -> bool:
    """Whether vectors get the length 1."""
    if modules is None or modules.normalize is None:
        return False
    _read(Normalize, modules.normalize)
    return True


def _prompts(prompts: Prompts, path: Path) -> dict[str, Any]:
    """The texts that may come before others, and how vectors are compared."""
    # these two are there in every checkpoint
    texts = {"query": "", "document": "", **prompts.prompts}
    if prompts.default_prompt_name not in (None, *texts):
        raise unsupported(
            "default_prompt_name",
            prompts.default_prompt_name,
            f"null and the names of prompts, {', '.join(map(quoted, texts))}, are",
            str(path),
        )
    return {
        "prompts": texts,
        "default_prompt_name": prompts.default_prompt_name,
        "similarity_fn_name": prompts.similarity_fn_name or "cosine",
    }


def _labels(
    config: dict[str, Any], folder: Path, prompts: Prompts, path: Path
) -> dict[str, Any]:
    """The labels of a classifier, and what makes scores of its logits.

    The activation is that of sentence-transformers' CrossEncoder.
    """
    if prompts.default_prompt_name is not None:
        name = prompts.default_prompt_name
        raise unsupported("default_prompt_name", name, "only null is", str(path))
    where = folder / "config.json"
    labels = Labels.read(config, str(where))
    # transformers leaves out what it takes for a file that lacks it
    names = labels.id2label or {"0": "LABEL_0", "1": "LABEL_1"}
    if names.keys() != {str(n) for n in range(len(names))}:
        supported = f'an object from "0" … "{len(names) - 1}" to labels is'
        raise unsupported("id2label", names, supported, str(where))
    own = config.get("sentence_transformers")
    found = [
        ("activation_fn", prompts.activation_fn, path),
        (
            "sentence_transformers.activation_fn",
            own.get("activation_fn") if isinstance(own, dict) else None,
            where,
        ),
        (
            "sbert_ce_default_activation_function",
            config.get("sbert_ce_default_activation_function"),
            where,
        ),
    ]
    activation = "sigmoid" if len(names) == 1 else "identity"
    for key, value, file in found:
        if value is not None:
            if not isinstance(value, str) or value not in SCORES:
                supported = f"{' and '.join(SCORES)} are"
                raise unsupported(key, value, supported, str(file))
            activation = SCORES[value]
            break
    return {
        "num_labels": len(names),
        "id2label": names,
        "problem_type": labels.problem_type,
        "activation_fn": activation,
    }
