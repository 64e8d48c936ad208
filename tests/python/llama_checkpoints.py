"""Random checkpoints of the Llama family, of odd shapes, as transformers saves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from runs import TWIN

VOCABULARY = 151
KINDS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
# 4 heads of 6 numbers beside a width of 20; 2 heads of keys
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 20, "intermediate_size": 37,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 6, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip


def save(folder: Path, kind: str, seed: int, scale: float = 2, **options: Any) -> Path:
    """Save a network of seeded random weights; its folder.

    Matrices are scaled by their inputs, so that no layer is drowned by another; biases
    and norms are random, too.
    """
    config = KINDS[kind](**(SHAPE | options))
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in network.named_parameters():
        if "embed" in name:
            torch.nn.init.normal_(parameter, 0, 0.5)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, scale / parameter.shape[1] ** 0.5)
        else:
            torch.nn.init.normal_(parameter, float("norm" in name), 0.2)
    network.save_pretrained(folder)
    return folder


def save_with_tokenizer(folder: Path, kind: str = "llama", **options: Any) -> Path:
    """Save one with the tokenizer of the bundled GPT-2."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    vocabulary = AutoConfig.from_pretrained(TWIN).vocab_size
    save(folder, kind, seed=1, vocab_size=vocabulary, **ends, **options)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(TWIN / name, folder)
    return folder
