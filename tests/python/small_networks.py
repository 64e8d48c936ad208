"""A text and an image network of two levels: a run takes little but dbt's start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from transformers import GPT2Config, GPT2LMHeadModel

import generate_network
from gpt2_runs import TWIN
from unet_runs import copy_bare_project, random_unet, save_pipeline

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


def save_image(folder: Path, seed: int) -> Path:
    """Random weights."""
    return save_pipeline(folder, random_unet(seed=seed, **UNET), DDPMScheduler())


def make_project(folder: Path, text: Path, image: Path) -> Path:
    """The project with the models of these two checkpoints, and no others."""
    project = copy_bare_project(folder)
    for network, checkpoint in {TEXT: text, IMAGE: image}.items():
        generate_network.write(
            project / "models" / network,
            generate_network.generate(checkpoint, network),
        )
    return project
