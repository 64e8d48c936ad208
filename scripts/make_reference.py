"""Write a checkpoint's reference activations: what its layers have to compute.

    python scripts/make_reference.py checkpoints/gpt2-twin
    python scripts/make_reference.py checkpoints/ddpm-twin

run the checkpoint in transformers or diffusers on fixed inputs and write what
its modules put out to reference.safetensors in the folder. `make check` (see
scripts/check.py) compares every layer of our networks with that file and needs
neither of these libraries; whoever makes the file does:

    pip install torch==2.13.0 transformers diffusers

The modules compute in float64 and the file keeps float32, so that it says what
is right to the last digit, whatever the machine and the number of its threads.

The file holds two tensors for each layer, which is named after its path in the
state_dict as in models/:
    LAYER         float32 [n, width]: activations of n places
    LAYER:places  int16 [n, …]: the places, by the columns of the layer's table;
                  before them, for an image network, the step (from 0)
and in its metadata, as JSON:
    inputs     rows of the table that the network's run has to read
    files      SHA-256 of each file of the checkpoint that was read
    libraries  versions
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from checkpoint import CheckpointError, find_parts

REFERENCE = "reference.safetensors"

# Held out of the twin's training. The first prompt ends, after so many tokens, a
# little before the longest block of attention is complete (60 positions), so that
# the greedy tokens complete it and read it.
LONG_PROMPT = (
    '"Have you heard from her yourself this morning?" cried he. "You have, I believe, '
    'and know the whole." "No, I have not; I know nothing; pray tell me." "You are '
    "prepared for the worst, I see--and very bad it is. Harriet Smith marries Robert "
    'Martin." Emma gave a start, which did not seem like being prepared.'
)
LONG_PROMPT_TOKENS = 58
LONG_PROMPT_PLACES = [0, 29, 57, 58, 59, 60]
SHORT_PROMPT = "She was still looking at him"
NEW_TOKENS = 4

# Two steps: the first from the middle of the noise schedule, the last at its end.
IMAGE_REQUESTS = [
    {"image_id": 1, "scheduler": "ddim", "num_inference_steps": 2, "seed": 1},
    {"image_id": 2, "scheduler": "ddim", "num_inference_steps": 2, "seed": 20},
]
PLACES = 2  # at corners, on borders and inside, of each layer, image and step


class Layers:
    """Activations by layer, with the places that they are of."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def add(
        self, layer: str, places: list[tuple[int, ...]], values: torch.Tensor
    ) -> None:
        """Add [n, width] activations; a layer may be added to."""
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{layer} has values that are not finite")
        for name, part in (
            (layer, values.to(torch.float32)),
            (f"{layer}:places", torch.tensor(places, dtype=torch.int16)),
        ):
            before = [self.tensors[name]] if name in self.tensors else []
            self.tensors[name] = torch.cat([*before, part]).contiguous()


Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]


def watch(network: torch.nn.Module) -> Seen:
    """Input and output of each module in its latest call, by its path."""
    seen: Seen = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(_: Any, inputs: tuple, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if inputs and isinstance(output, torch.Tensor):
                seen[path] = (inputs[0].detach(), output.detach())

        return keep

    for path, module in network.named_modules():
        module.register_forward_hook(hook(path))
    return seen


# --- GPT-2 --------------------------------------------------------------------


def gpt2_layers(seen: Seen, layers: int) -> dict[str, torch.Tensor]:
    """[position, width] of every layer but the blocks of keys and values."""

    def read(path: str) -> torch.Tensor:
        return seen[path][0][0]

    def written(path: str) -> torch.Tensor:
        return seen[path][1][0]

    found = {"embedding": written("transformer.drop")}
    for n in range(layers):
        h, module = f"h.{n}", f"transformer.h.{n}"
        found[f"{h}.ln_1"] = written(f"{module}.ln_1")
        for letter, part in zip(
            "qkv", written(f"{module}.attn.c_attn").chunk(3, dim=-1), strict=True
        ):
            found[f"{h}.attn.c_attn.{letter}"] = part
        found[f"{h}.attn"] = read(f"{module}.attn.c_proj")
        # with the residual stream
        found[f"{h}.attn.c_proj"] = read(f"{module}.ln_2")
        found[f"{h}.ln_2"] = written(f"{module}.ln_2")
        found[f"{h}.mlp.c_fc"] = read(f"{module}.mlp.c_proj")  # after GELU
        found[f"{h}.mlp.c_proj"] = written(module)
    found["ln_f"] = written("transformer.ln_f")
    found["lm_head"] = written("lm_head")
    return found


def gpt2_reference(folder: Path) -> tuple[Layers, list[dict]]:
    """Run the prompts with greedy decoding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    seen = watch(network)
    long = tokenizer(LONG_PROMPT)["input_ids"][:LONG_PROMPT_TOKENS]
    prompts = [tokenizer.decode(long), SHORT_PROMPT]
    inputs = []
    layers = Layers()
    for sequence, prompt in enumerate(prompts, start=1):
        prompt_ids = tokenizer(prompt)["input_ids"]
        if sequence == 1 and prompt_ids != long:
            raise CheckpointError("the long prompt is cut within a word")
        token_ids = [*prompt_ids]
        for _ in range(NEW_TOKENS):
            logits = network(torch.tensor([token_ids])).logits[0, -1]
            token_ids.append(int(logits.argmax()))
            layers.add(
                "completion_tokens",
                [(sequence, len(token_ids) - 1)],
                torch.tensor([[token_ids[-1]]]),
            )
        if network.config.eos_token_id in token_ids:
            raise CheckpointError("a prompt's completion ends early: choose another")
        # the last token is not read; the network has just read all before it
        positions = range(len(token_ids) - 1)
        kept = LONG_PROMPT_PLACES if sequence == 1 else [*positions]
        for layer, values in gpt2_layers(seen, network.config.n_layer).items():
            # lm_head has the newest position of each step
            newest = [*positions][len(prompt_ids) - 1 :]
            at = newest if layer == "lm_head" else kept
            layers.add(layer, [(sequence, position) for position in at], values[at])
        inputs.append(
            {"prompt_id": sequence, "prompt": prompt, "max_new_tokens": NEW_TOKENS}
        )
    return layers, inputs


# --- UNet ---------------------------------------------------------------------


def gaussian_noise(seed: int, step: int, y: int, x: int, channel: int) -> float:
    """The same as the database function (macros/functions/create_functions.sql)."""
    digest = hashlib.md5(f"{seed}/{step}/{y}/{x}/{channel}".encode()).hexdigest()
    one, other = int(digest[:13], 16), int(digest[-13:], 16)
    return math.sqrt(-2 * math.log((one + 0.5) / 2.0**52)) * math.cos(
        2 * math.pi * other / 2.0**52
    )


def unet_layers(network: UNet2DModel, seen: Seen) -> dict[str, torch.Tensor]:
    """[image, h, w, width] of every layer, or [image, width] of the timestep's."""
    silu = torch.nn.functional.silu

    def nhwc(values: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        """From [image, channel, h, w] or [image, channel, place]."""
        if like is not None:
            values = values.reshape(like.shape[0], -1, *like.shape[2:])
        return values.permute(0, 2, 3, 1)

    found = {
        "time_proj": seen["time_proj"][1].to(network.dtype),
        "time_embedding.linear_1": silu(seen["time_embedding.linear_1"][1]),
        "time_embedding.linear_2": seen["time_embedding.linear_2"][1],
        "time_embedding.silu": silu(seen["time_embedding.linear_2"][1]),
        "conv_in": nhwc(seen["conv_in"][1]),
    }
    for path, module in network.named_modules():
        read, written = seen.get(path, (None, None))
        if isinstance(module, ResnetBlock2D):
            timestep = seen[f"{path}.time_emb_proj"][1]
            if path.startswith("up_blocks"):
                found[f"{path}.cat"] = nhwc(read)
            found[f"{path}.norm1"] = nhwc(silu(seen[f"{path}.norm1"][1]))
            found[f"{path}.time_emb_proj"] = timestep
            found[f"{path}.conv1"] = nhwc(
                seen[f"{path}.conv1"][1] + timestep[:, :, None, None]
            )
            found[f"{path}.norm2"] = nhwc(silu(seen[f"{path}.norm2"][1]))
            if f"{path}.conv_shortcut" in seen:
                found[f"{path}.conv_shortcut"] = nhwc(seen[f"{path}.conv_shortcut"][1])
            found[f"{path}.conv2"] = nhwc(written)  # with the residual stream
        elif isinstance(module, Attention):
            found[f"{path}.group_norm"] = nhwc(seen[f"{path}.group_norm"][1], read)
            for part in ("to_q", "to_k", "to_v"):
                found[f"{path}.{part}"] = nhwc(
                    seen[f"{path}.{part}"][1].transpose(1, 2), read
                )
            found[path] = nhwc(seen[f"{path}.to_out.0"][0].transpose(1, 2), read)
            found[f"{path}.to_out.0"] = nhwc(written)
        elif path.endswith("samplers.0.conv"):
            if ".upsamplers." in path:
                found[path.replace(".conv", ".interpolate")] = nhwc(read)
            found[path] = nhwc(written)
    found["conv_norm_out"] = nhwc(silu(seen["conv_norm_out"][1]))
    found["conv_out"] = nhwc(seen["conv_out"][1])
    return found


def chosen_places(what: str, height: int, width: int) -> list[tuple[int, int]]:
    """Some corners, places of the borders and places inside, others for each."""
    rng = random.Random(what)
    corners, borders, inner = [], [], []
    for y in range(height):
        for x in range(width):
            edges = (y in (0, height - 1)) + (x in (0, width - 1))
            (inner, borders, corners)[edges].append((y, x))
    return sorted(
        place
        for kind in (corners, borders, inner)
        for place in rng.sample(kind, min(PLACES, len(kind)))
    )


def unet_reference(folder: Path) -> tuple[Layers, list[dict]]:
    """Draw the images with DDIM."""
    parts = find_parts(folder)
    network = UNet2DModel.from_pretrained(parts.network, low_cpu_mem_usage=False)
    network = network.double().eval()
    # whatever the class that the checkpoint names: both have one noise schedule
    scheduler = DDIMScheduler.from_pretrained(parts.root, subfolder="scheduler")
    seen = watch(network)
    size = network.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    samples = torch.tensor(
        [
            [
                [
                    [gaussian_noise(row["seed"], 0, y, x, c) for x in range(width)]
                    for y in range(height)
                ]
                for c in range(network.config.in_channels)
            ]
            for row in IMAGE_REQUESTS
        ],
        dtype=torch.float32,  # as the table keeps it
    ).double()
    layers = Layers()

    def add_images(step: int) -> None:
        for image, sample in enumerate(samples, start=1):
            places = [(image, step, y, x) for y in range(height) for x in range(width)]
            rows = sample.permute(1, 2, 0).reshape(height * width, -1)
            layers.add("images", places, rows)

    scheduler.set_timesteps(IMAGE_REQUESTS[0]["num_inference_steps"])
    add_images(0)
    for step, timestep in enumerate(scheduler.timesteps):
        output = network(samples, timestep).sample
        for layer, values in unet_layers(network, seen).items():
            for image, value in enumerate(values, start=1):
                if value.ndim == 1:
                    layers.add(layer, [(step, image)], value[None])
                    continue
                chosen = chosen_places(f"{layer}/{image}/{step}", *value.shape[:2])
                layers.add(
                    layer,
                    [(step, image, y, x) for y, x in chosen],
                    torch.stack([value[y, x] for y, x in chosen]),
                )
        samples = scheduler.step(output, timestep, samples).prev_sample
        add_images(step + 1)
    return layers, IMAGE_REQUESTS


# --- The file -----------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what the checkpoint computes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.name in ("config.json", "scheduler_config.json", "tokenizer.json")
        or (path.suffix == ".safetensors" and path.name != REFERENCE)
    }


@torch.no_grad()
def make(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The file's tensors and metadata."""
    files = digests(folder)
    config = json.loads((find_parts(folder).network / "config.json").read_text())
    if config.get("_class_name") == "UNet2DModel":
        library = diffusers
        layers, inputs = unet_reference(folder)
    else:
        library = transformers
        layers, inputs = gpt2_reference(folder)
    if digests(folder) != files:
        raise CheckpointError(f"{folder} changed meanwhile: run this again")
    metadata = {
        "inputs": inputs,
        "files": files,
        "libraries": {
            module.__name__: module.__version__ for module in (library, torch)
        },
    }
    return layers.tensors, {key: json.dumps(value) for key, value in metadata.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    folder = parser.parse_args().folder
    try:
        tensors, metadata = make(folder)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = folder / REFERENCE
    save_file(tensors, path, metadata)
    path.chmod(0o644)  # it is written for its owner alone
    print(f"{path}: {len(tensors) // 2} layers, {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
