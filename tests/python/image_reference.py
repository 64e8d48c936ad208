"""What `diffusers` computes of the input that a diffusion network in dbt gets.

The oracle reads the same checkpoint folder as the loader; the noise is fed to
it, since the database's is a function of seed and place and not torch's.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm

from runs import Row

# Of a layer's largest absolute value: what sums in float32, in another order and
# over a hundred layers, may differ by.
LAYER_TOLERANCE = 1e-4


def gaussian_noise(seed: int, step: int, y: int, x: int, channels: int) -> list[float]:
    """The noise of a place, as create_functions.sql defines it."""
    noise = []
    for channel in range(channels):
        text = f"{seed}/{step}/{y}/{x}/{channel}"
        digest = hashlib.md5(text.encode()).hexdigest()
        u, v = int(digest[:13], 16), int(digest[-13:], 16)
        radius = math.sqrt(-2 * math.log((u + 0.5) / 2**52))
        noise.append(radius * math.cos(2 * math.pi * v / 2**52))
    return noise


def noise_image(seed: int, step: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """[channels, h, w]."""
    channels, height, width = shape
    places = [
        [gaussian_noise(seed, step, y, x, channels) for x in range(width)]
        for y in range(height)
    ]
    return torch.tensor(places, dtype=torch.float32).permute(2, 0, 1)


@contextmanager
def ddpm_noise(noise: torch.Tensor) -> Iterator[None]:
    """Let DDPMScheduler.step() draw this; it takes no noise as an argument."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise)
        yield


def scheduler_step(
    scheduler: DDPMScheduler | DDIMScheduler,
    output: torch.Tensor,
    timestep: int,
    sample: torch.Tensor,
    eta: float,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next sample and the picture that is predicted."""
    if isinstance(scheduler, DDIMScheduler):
        found = scheduler.step(output, timestep, sample, eta=eta, variance_noise=noise)
    else:
        with ddpm_noise(noise):
            found = scheduler.step(output, timestep, sample)
    return found.prev_sample, found.pred_original_sample


SCHEDULERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}


class Reference:
    """A checkpoint folder in `diffusers`: float32 on the CPU."""

    def __init__(self, folder: Path):
        """Read the network and the scheduler's configuration."""
        self.unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
        self.folder = folder
        size = self.unet.config.sample_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        self.shape = (self.unet.config.in_channels, height, width)

    def scheduler(self, row: Row) -> DDPMScheduler | DDIMScheduler:
        scheduler = SCHEDULERS[row["scheduler"]].from_pretrained(
            self.folder, subfolder="scheduler"
        )
        scheduler.set_timesteps(row["num_inference_steps"])
        return scheduler

    def start(self, row: Row) -> torch.Tensor:
        return noise_image(row["seed"], 0, self.shape)

    @torch.no_grad()
    def draw(self, row: Row) -> list[torch.Tensor]:
        """The sample after every step, and the noise before."""
        scheduler = self.scheduler(row)
        sample = self.start(row)[None]
        samples = [sample[0]]
        for step, timestep in enumerate(scheduler.timesteps):
            sample, _ = scheduler_step(
                scheduler,
                self.unet(sample, timestep).sample,
                timestep,
                sample,
                row.get("eta", 0),
                noise_image(row["seed"], step + 1, self.shape)[None],
            )
            samples.append(sample[0])
        return samples

    @torch.no_grad()
    def layers(
        self, samples: list[torch.Tensor], timesteps: list[int]
    ) -> dict[str, torch.Tensor]:
        """What each layer of ours holds, by its path in the state_dict.

        As modules give or take it: SiLU, sums and torch.cat have no module.
        """
        inputs: dict[str, torch.Tensor] = {}
        outputs: dict[str, torch.Tensor] = {}

        def hook(path: str) -> Any:
            def record(_: Any, given: tuple[Any, ...], output: Any) -> None:
                inputs[path] = given[0] if given else None
                outputs[path] = output

            return record

        hooks = [
            module.register_forward_hook(hook(path))
            for path, module in self.unet.named_modules()
        ]
        self.unet(torch.stack(samples), torch.tensor(timesteps))
        for each in hooks:
            each.remove()
        found = {}
        for path in outputs:
            found.update(layers_of_module(path, inputs[path], outputs[path]))
        return found


# A module's path, whether ours is its input or its output, and ours' path.
INPUT, OUTPUT = 0, 1
LAYERS = [
    (r"time_proj|time_embedding\.linear_2|conv_in|conv_out", OUTPUT, r"\g<0>"),
    (r"(time_embedding)\.act", OUTPUT, r"\1.linear_1"),
    (r".+\.time_emb_proj", INPUT, r"time_embedding.silu"),
    (r".+\.time_emb_proj", OUTPUT, r"\g<0>"),
    (r"(.+\.resnets\.\d+)\.conv1", INPUT, r"\1.norm1"),
    (r"(.+\.resnets\.\d+)\.norm2", INPUT, r"\1.conv1"),
    (r"(.+\.resnets\.\d+)\.conv2", INPUT, r"\1.norm2"),
    (r"(.+\.resnets\.\d+)", OUTPUT, r"\1.conv2"),
    (r"(up_blocks\.\d+\.resnets\.\d+)", INPUT, r"\1.cat"),
    (r".+\.(conv_shortcut|group_norm|to_q|to_k|to_v)", OUTPUT, r"\g<0>"),
    (r"(.+\.attentions\.\d+)\.to_out\.0", INPUT, r"\1"),
    (r"(.+\.attentions\.\d+)", OUTPUT, r"\1.to_out.0"),
    (r"(.+\.upsamplers\.0)\.conv", INPUT, r"\1.interpolate"),
    (r".+\.(up|down)samplers\.0\.conv", OUTPUT, r"\g<0>"),
    (r"conv_out", INPUT, "conv_norm_out"),
]


def layers_of_module(
    path: str, given: torch.Tensor, output: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The layers of ours that a module's input and output are."""
    found = {}
    for pattern, side, template in LAYERS:
        match = re.fullmatch(pattern, path)
        if match:
            ours = match.expand(template)
            found[ours] = places_last(ours, output if side == OUTPUT else given)
    return found


def places_last(path: str, tensor: torch.Tensor) -> torch.Tensor:
    """[images, places, n] or [images, n], whatever the module has."""
    if tensor.dim() == 4 or path.endswith(".group_norm"):
        return tensor.flatten(2).transpose(1, 2)
    return tensor


# --- Comparison ---------------------------------------------------------------


def check_close(ours: torch.Tensor, reference: torch.Tensor, what: str) -> float:
    """The largest difference by the largest value; fails with its surroundings.

    Both are [images, places, n] or [images, n].
    """
    assert ours.shape == reference.shape, f"{what}: {ours.shape} not {reference.shape}"
    largest = float(reference.abs().max())
    difference = (ours - reference).abs()
    relative = float(difference.max()) / largest
    if not relative <= LAYER_TOLERANCE:
        # where it is not a number, that is the largest
        worst = np.unravel_index(int(difference.argmax()), difference.shape)
        *place, n = (int(index) for index in worst)
        around = (*place, slice(max(n - 2, 0), n + 3))
        pytest.fail(
            f"{what}: largest difference {float(difference.max()):.3g}, that is "
            f"{relative:.3g} of the largest value {largest:.3g}, at {(*place, n)} of "
            f"{tuple(ours.shape)}; tolerance {LAYER_TOLERANCE}\n"
            f"  ours      {ours[around].tolist()}\n"
            f"  reference {reference[around].tolist()}",
            pytrace=False,
        )
    return relative


def check_layers(
    network: str, ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]
) -> float:
    """Each of our layers, none left out; prints and gives the worst difference."""
    models = {f"{network}_{path.replace('.', '_')}": path for path in reference}
    assert set(models) == set(ours)
    worst = (0.0, "")
    # in the order of computation, so that the first to fail is the one at fault
    for model, path in models.items():
        found, expected = ours[model], reference[path]
        if found.dim() == 4:
            found = found.flatten(1, 2)
        worst = max(worst, (check_close(found, expected, path), path))
    print(f"{network}: {len(models)} layers, worst {worst[0]:.2g} in {worst[1]}")
    return worst[0]


# --- Checkpoints --------------------------------------------------------------


def random_unet(seed: int, **config: Any) -> UNet2DModel:
    """A network with random weights, norms and biases too.

    Matrices are scaled by their inputs; queries and keys are larger, so that
    attention is far from even.
    """
    unet = UNet2DModel(**config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in unet.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            is_scale = "norm" in name and name.endswith("weight")
            state[name] = noise * 0.2 + (1 if is_scale else 0)
        else:
            gain = 2 if ".to_q." in name or ".to_k." in name else 1
            state[name] = noise * gain / tensor[0].numel() ** 0.5
    unet.load_state_dict(state)
    return unet.eval()


def save_pipeline(
    folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler | DDIMScheduler
) -> Path:
    """Save them as the Hub lays them out."""
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder
