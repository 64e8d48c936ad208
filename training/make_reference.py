"""Write a checkpoint's reference activations: what its layers have to compute.

    python scripts/make_reference.py checkpoints/gpt2-twin
    python scripts/make_reference.py checkpoints/ddpm-twin
    python scripts/make_reference.py sentence-transformers/all-MiniLM-L6-v2

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

import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dbt_nn.check import reference_folder
from dbt_nn.checkpoint.configuration import read_configuration
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.scheduler import find_parts
from dbt_nn.cli import command
from dbt_nn.hub import fetch
from dbt_nn.networks.graph import Network, Reference, listed

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
ENCODED = [
    "You have bewitched me, body and soul.",
    "Die Rechnung wurde zweimal abgebucht - 2 x 19,90 €!",
]
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
            if isinstance(output, tuple) and path.endswith("rotary_emb"):
                output = torch.cat(output, dim=-1)  # cosines and sines
            output = output[0] if isinstance(output, tuple) else output
            if inputs and isinstance(output, torch.Tensor):
                seen[path] = (inputs[0].detach(), output.detach())

        return keep

    for path, module in network.named_modules():
        module.register_forward_hook(hook(path))
    return seen


def activations(network: Network, seen: Seen) -> dict[str, torch.Tensor]:
    """What the library computed for each layer that the description compares.

    [batch, places, channels] of texts, [batch, h, w, channels] of images, and
    [batch, channels] of what an image has once.
    """
    return {
        layer: found(reference, network, seen)
        for layer, reference in network.references.items()
    }


def found(reference: Reference, network: Network, seen: Seen) -> torch.Tensor:
    """One layer's, see Reference."""
    before, after = seen[reference.module]
    values = before if reference.is_input else after
    values = by_place(values, reference.axes or network.axes, network)
    if reference.rotary:
        values = rotated(values, *seen[reference.rotary][1].chunk(2, dim=-1))
    if reference.part:
        part, parts = reference.part
        values = values.chunk(parts, dim=-1)[part]
    if reference.plus:
        added = found(reference.plus, network, seen)
        values = values + added.reshape(len(added), 1, 1, -1)
    if reference.activation:
        values = getattr(torch.nn.functional, reference.activation)(values)
    return values.to(torch.float64)


def rotated(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The heads of each place, [batch, places, heads * d], turned by its angles."""
    heads = values.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    return turned.transpose(1, 2).flatten(2)


def by_place(values: torch.Tensor, axes: str, network: Network) -> torch.Tensor:
    """With the channels last; places of an image by row and column."""
    if "h" in axes and "p" in axes:  # heads, side by side
        values, axes = values.flatten(axes.index("h"), axes.index("c")), "bpc"
    values = values.permute(*map(axes.index, axes.replace("c", "") + "c"))
    if "p" not in axes or "y" not in network.axes:
        return values
    height, width = network.config.sample_size
    times = math.isqrt(height * width // values.shape[1])  # a level's size halved
    return values.unflatten(1, (height // times, width // times))


# --- Texts --------------------------------------------------------------------


def text_reference(folder: Path, described: Network) -> tuple[Layers, list[dict]]:
    """Run the prompts with greedy decoding."""
    prompts = text_prompts(folder, described.config.vocab_size)
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    seen = watch(network)
    inputs = []
    layers = Layers()
    for sequence, (prompt, prompt_ids) in enumerate(prompts, start=1):
        token_ids = [*prompt_ids]
        for _ in range(NEW_TOKENS):
            logits = network(torch.tensor([token_ids])).logits[0, -1]
            token_ids.append(int(logits.argmax()))
            layers.add(
                "completion_tokens",
                [(sequence, len(token_ids) - 1)],
                torch.tensor([[token_ids[-1]]]),
            )
        if {*listed(network.config.eos_token_id)} & {*token_ids[len(prompt_ids) :]}:
            raise CheckpointError("a prompt's completion ends early: choose another")
        # the last token is not read; the network has just read all before it
        positions = range(len(token_ids) - 1)
        kept = LONG_PROMPT_PLACES if sequence == 1 else [*positions]
        for layer, (values,) in activations(described, seen).items():
            # lm_head has the newest position of each step
            newest = [*positions][len(prompt_ids) - 1 :]
            at = newest if layer == "lm_head" else kept
            layers.add(layer, [(sequence, position) for position in at], values[at])
        given = (
            {"prompt_token_ids": prompt_ids} if prompt is None else {"prompt": prompt}
        )
        inputs.append({"prompt_id": sequence, **given, "max_new_tokens": NEW_TOKENS})
    return layers, inputs


def text_prompts(folder: Path, vocabulary: int) -> list[tuple[str | None, list[int]]]:
    """Each prompt with its tokens; tokens at random where there is no tokenizer."""
    if not (folder / "tokenizer.json").exists():
        rng = random.Random(0)
        lengths = (LONG_PROMPT_TOKENS, 7)
        return [
            (None, [rng.randrange(vocabulary) for _ in range(length)])
            for length in lengths
        ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = tokenizer(LONG_PROMPT)["input_ids"][:LONG_PROMPT_TOKENS]
    prompts = [tokenizer.decode(long, skip_special_tokens=True), SHORT_PROMPT]
    found = [(prompt, tokenizer(prompt)["input_ids"]) for prompt in prompts]
    if found[0][1] != long:
        raise CheckpointError("the long prompt is cut within a word")
    return found


# --- Whole texts --------------------------------------------------------------


def encoder_reference(folder: Path, described: Network) -> tuple[Layers, list[dict]]:
    """Embed two texts, each by itself."""
    # importing it takes seconds, and no other network needs it
    from sentence_transformers import SentenceTransformer

    sentence = SentenceTransformer(str(folder), device="cpu").double().eval()
    network = next(
        module
        for module in sentence.modules()
        if isinstance(module, transformers.PreTrainedModel)
    )
    network.set_attn_implementation("eager")
    seen = watch(network)
    layers = Layers()

    def keep_pooled(_: Any, __: Any, features: dict) -> None:
        pooled.append(features["sentence_embedding"].detach())

    pooled: list[torch.Tensor] = []
    sentence[1].register_forward_hook(keep_pooled)
    for key, text in enumerate(ENCODED, start=1):
        embedding = sentence.encode(text, convert_to_tensor=True, prompt="")
        for layer, (values,) in activations(described, seen).items():
            kept = sorted({0, len(values) // 2, len(values) - 1})
            layers.add(layer, [(key, position) for position in kept], values[kept])
        layers.add("pooling", [(key,)], pooled[-1])
        layers.add("embeddings", [(key, 0)], embedding[None])
    return layers, [{"id": key, "text": text} for key, text in enumerate(ENCODED, 1)]


# --- Images -------------------------------------------------------------------


def gaussian_noise(seed: int, step: int, y: int, x: int, channel: int) -> float:
    """The same as the database function, see create_functions.sql."""
    digest = hashlib.md5(f"{seed}/{step}/{y}/{x}/{channel}".encode()).hexdigest()
    one, other = int(digest[:13], 16), int(digest[-13:], 16)
    return math.sqrt(-2 * math.log((one + 0.5) / 2.0**52)) * math.cos(
        2 * math.pi * other / 2.0**52
    )


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


def image_reference(folder: Path, described: Network) -> tuple[Layers, list[dict]]:
    """Draw the images with DDIM."""
    parts = find_parts(folder)
    network = UNet2DModel.from_pretrained(parts.network, low_cpu_mem_usage=False)
    network = network.double().eval()
    # whatever the class that the checkpoint names: both have one noise schedule
    scheduler = DDIMScheduler.from_pretrained(parts.root, subfolder="scheduler")
    seen = watch(network)
    height, width = described.config.sample_size
    samples = torch.tensor(
        [
            [
                [
                    [gaussian_noise(row["seed"], 0, y, x, c) for x in range(width)]
                    for y in range(height)
                ]
                for c in range(described.config.in_channels)
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
        for layer, values in activations(described, seen).items():
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
    configuration = read_configuration(folder)
    kind = configuration.family
    network = kind(kind.kind, configuration.checked)
    if kind.is_scheduled:
        library = diffusers
        layers, inputs = image_reference(folder, network)
    elif kind.is_encoder:
        library = transformers
        layers, inputs = encoder_reference(folder, network)
    else:
        library = transformers
        layers, inputs = text_reference(folder, network)
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


@command(__doc__)
@click.argument("source")
def main(source: str) -> int:
    """Carry out the command line."""
    tensors, metadata = make(fetch(source))
    path = reference_folder(source) / REFERENCE
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata)
    path.chmod(0o644)  # it is written for its owner alone
    print(f"{path}: {len(tensors) // 2} layers, {path.stat().st_size / 1e6:.2f} MB")
    return 0
