"""The UNet beside diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from bench.cases import Case, Step
from bench.project import Project
from bench.sizes import Sizes


def unet(sizes: Sizes) -> Iterator[Case]:
    """The UNet of ddpm-butterflies-64: a step of 1 image and of 4."""
    size = sizes.image["sample_size"]
    for images in sizes.images:
        yield Case(
            f"unet.{images}",
            f"UNet step, {size}x{size}, {images} image{'s' if images > 1 else ''}",
            "diffusers",
            partial(denoise, images),
            partial(their_denoise, images),
        )


def image_network(project: Project) -> Path:
    """Save a UNet wired like ddpm-butterflies-64, of random weights, once."""
    folder = project.folder / "butterflies"
    if not folder.exists():
        torch.manual_seed(0)
        network = UNet2DModel(
            down_block_types=[*["DownBlock2D"] * 2, *["AttnDownBlock2D"] * 2],
            up_block_types=[*["AttnUpBlock2D"] * 2, *["UpBlock2D"] * 2],
            **project.sizes.image,
        )
        pipeline = DDIMPipeline(unet=network, scheduler=DDIMScheduler())
        pipeline.save_pretrained(folder)
    return folder


def denoise(images: int, project: Project) -> Step:
    """A step of denoising, UNet and DDIM."""
    checkpoint = project.load(image_network(project), "butterflies")
    # one step, and where the loop would make the next of 50
    for select, steps in (("ddpm", 1), ("+ddpm_conv_out", 50)):
        project.run_dbt(
            select,
            ddpm_checkpoint=checkpoint,
            ddpm_options={"num_inference_steps": steps, "batch_size": images},
        )
    project.execute("select {schema}.ddpm_denoised_forward(true)")
    return Step(project.step_of("ddpm_denoised"))


def their_denoise(images: int, project: Project) -> Step:
    network = UNet2DModel.from_pretrained(image_network(project) / "unet").eval()
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    size = project.sizes.image["sample_size"]
    sample = torch.randn(images, 3, size, size)

    @torch.inference_mode()
    def step() -> None:
        scheduler.step(network(sample, 0).sample, 0, sample)

    return Step(step)
