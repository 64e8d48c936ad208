"""The part of scripts/bench.py that times the UNet beside diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from bench.common import IMAGE, SCHEMA, Bench, Row, in_turn, load, say, step_of, timed


def image_network(folder: Path, **config: Any) -> UNet2DModel:
    """A UNet wired like ddpm-butterflies-64, with seeded random weights, saved."""
    torch.manual_seed(0)
    network = UNet2DModel(
        down_block_types=[*["DownBlock2D"] * 2, *["AttnDownBlock2D"] * 2],
        up_block_types=[*["AttnUpBlock2D"] * 2, *["UpBlock2D"] * 2],
        **config,
    ).eval()
    DDIMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained(folder)
    return network


def begin_to_draw(bench: Bench, images: int, steps: int) -> None:
    """Stop after the first of that many steps, where the loop would make the next."""
    for select, number in (("ddpm", 1), ("+ddpm_conv_out", steps)):
        bench.run_dbt(
            select,
            ddpm_checkpoint=IMAGE,
            ddpm_options={"num_inference_steps": number, "batch_size": images},
        )
    bench.connection.cursor().execute(f"select {SCHEMA}.ddpm_denoised_forward(true)")


def unet(bench: Bench) -> Iterator[Row]:
    """A denoising step, UNet and DDIM."""
    folder = bench.folder / "image"
    network = image_network(folder, **bench.sizes.image)
    load(folder, IMAGE)
    size = bench.sizes.image["sample_size"]
    for images in bench.sizes.images:
        say(f"unet: {images} x {size}x{size}")
        steps = max(bench.sizes.steps // (2 * images), 1)
        begin_to_draw(bench, images, steps + 2)
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(1)
        sample = torch.randn(images, 3, size, size)

        def theirs(
            scheduler: DDIMScheduler = scheduler, sample: torch.Tensor = sample
        ) -> None:
            scheduler.step(network(sample, 0).sample, 0, sample)

        ours = step_of(bench.connection, "ddpm_denoised")
        times = in_turn(ours, theirs, steps, warm=1)
        what = f"UNet step, {size}x{size}, {images} image{'s' if images > 1 else ''}"
        yield timed(what, "diffusers", 20, times)
