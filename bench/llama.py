"""Networks of the Llama family beside transformers: a token of greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.cases import Case, Pace, Step
from bench.project import Project
from bench.sizes import Sizes
from bench.texts import greedy_step, random_tokens, read_prompts, write_project

DTYPES = ("float32", "float16")


def llama(sizes: Sizes) -> Iterator[Case]:
    """SmolLM2 135M and 360M, Llama 3.2 1B: a token, weights in float32 and float16."""
    context = sizes.contexts[0]
    for name in sizes.llama:
        for dtype in DTYPES:
            yield Case(
                f"llama.{name}.{dtype}",
                f"a token of the shape {name.upper()}, {dtype}, context {context:,}",
                "transformers, float32",
                partial(token, name, dtype),
                partial(their_token, name),
                pace=Pace(warm=2),
            )


def saved(project: Project, name: str) -> Path:
    """A checkpoint of seeded random weights, made once; its folder."""
    folder, shape = project.folder / f"llama_{name}", project.sizes.llama[name]
    if not folder.exists():
        torch.manual_seed(0)
        config = LlamaConfig(**shape, bos_token_id=0, eos_token_id=None)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def token(name: str, dtype: str, project: Project) -> Step:
    """A token of one sequence, by a step of the loop."""
    network = f"llama_{name}"
    folder = saved(project, name)
    root = project.folder / f"project_{network}"
    if not root.exists():
        write_project(root, folder, network)
    schema = project.load(folder, f"{name}_{dtype}", "--dtype", dtype)
    prompt = random_tokens(1, project.sizes.contexts[0], folder)
    # more than the default allows for the largest
    read_prompts(project, prompt, schema, network, root, resident_memory="8GB")
    return Step(project.step_of(f"{network}_completion_tokens"))


def their_token(name: str, project: Project) -> Step:
    """The same of transformers, with its KV cache."""
    folder = saved(project, name)
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = random_tokens(1, project.sizes.contexts[0], folder)
    return greedy_step(network, prompt)
