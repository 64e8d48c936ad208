"""Networks of two levels, for text, whole texts and images: a run takes little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.pytorch_utils import Conv1D

from dbt_nn import generate as generate_network
from image_reference import random_unet, save_pipeline
from runs import TWIN, copy_bare_project

TEXT, IMAGE = "small_text", "small_unet"
POSITIONS = 128
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 12),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def save_text(folder: Path, seed: int) -> Path:
    """Random weights, with the twin's tokenizer."""
    torch.manual_seed(seed)
    config = GPT2Config.from_pretrained(
        TWIN, n_layer=2, n_embd=16, n_head=2, n_positions=POSITIONS, n_inner=None,
        initializer_range=0.4,
    )  # fmt: skip
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    for path in TWIN.iterdir():
        if path.name in ("tokenizer.json", "vocab.json", "merges.txt"):
            shutil.copy(path, folder)
    return folder


def save_chat(folder: Path, template: str | None, seed: int) -> Path:
    """The same with a chat template."""
    return add_chat(save_text(folder, seed), template)


def add_chat(folder: Path, template: str | None) -> Path:
    """Give a network with the twin's tokenizer a chat template.

    And a token that is put before each prompt.
    """
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    end = "<|endoftext|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    tokenizer.save(str(path))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "bos_token": end,
        **({"chat_template": template} if template else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def save_encoder(
    folder: Path,
    texts: list[str],
    seed: int,
    network: type[BertPreTrainedModel] = BertModel,
    **options: Any,
) -> Path:
    """Random weights of a BERT, with a tokenizer of the words of these texts."""
    torch.manual_seed(seed)
    folder.mkdir()
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=200, min_frequency=1)
    tokenizer.save_model(str(folder))
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=2, hidden_size=24,
        num_attention_heads=3, intermediate_size=40, initializer_range=0.4,
        **options,
    )  # fmt: skip
    network(config).eval().save_pretrained(folder)
    return folder


def save_image(folder: Path, seed: int) -> Path:
    """Random weights."""
    return save_pipeline(folder, random_unet(seed=seed, **UNET), DDPMScheduler())


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def halve(network: torch.nn.Module) -> None:
    """Round the network's matrices, and what each is multiplied with."""
    for module in network.modules():
        if isinstance(
            module, torch.nn.Linear | torch.nn.Conv2d | Conv1D | torch.nn.Embedding
        ):
            module.weight.data = rounded(module.weight.data)
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | Conv1D):
            module.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))


def make_project(folder: Path, text: Path, image: Path | None = None) -> Path:
    """The project with the models of these checkpoints, and no others."""
    project = copy_bare_project(folder)
    for network, checkpoint in {TEXT: text, IMAGE: image}.items():
        if checkpoint:
            generate_network.write(
                project / "models" / network,
                generate_network.generate(checkpoint, network),
            )
    return project
