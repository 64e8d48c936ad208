"""What `transformers` computes of the input that a text network in dbt gets.

The oracle reads the same checkpoint folder as the loader, so no expectation is
written down.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runs import Row

# Of the largest |logit|: what float32 sums in another order may differ by.
LOGIT_TOLERANCE = 1e-4

State = dict[str, torch.Tensor]


class Reference:
    """A checkpoint folder in `transformers`: float32, eager."""

    def __init__(self, folder: Path, tokenizer: bool = True):
        """Read the network, and the tokenizer if there is one."""
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.config = self.model.config
        self.folder = folder
        self.has_tokenizer = tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    def encode(self, row: Row) -> list[int]:
        """The prompt's tokens; generate() reads an empty prompt as bos."""
        token_ids = row.get("prompt_token_ids")
        if token_ids is None:
            token_ids = self.tokenizer(row["prompt"])["input_ids"]
        return token_ids or [self.config.bos_token_id]

    def decode(self, token_ids: list[int]) -> str:
        """The text of the tokens, without end-of-text."""
        return self.tokenizer.decode(
            [t for t in token_ids if t not in self.end_ids],
            clean_up_tokenization_spaces=False,
        )

    @property
    def end_ids(self) -> list[int]:
        end = self.config.eos_token_id
        return [] if end is None else end if isinstance(end, list) else [end]

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """[positions, vocabulary]."""
        return self.model(torch.tensor([token_ids])).logits[0]

    def generate(self, row: Row, **options: Any) -> list[int]:
        """The new tokens that greedy decoding gives."""
        token_ids = self.encode(row)
        found = self.model.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        return found[0, len(token_ids) :].tolist()


def uniform(seed: int, prompt_id: Any, position: int) -> float:
    """The random number of a token, as macros/text/choose_token.sql defines it."""
    digest = hashlib.md5(f"{seed}/{prompt_id}/{position}".encode())
    return int(digest.hexdigest()[:13], 16) / 16**13


def processors(options: Row) -> LogitsProcessorList:
    """Those that generate() makes of the options, in its order."""
    chosen = LogitsProcessorList()
    if options.get("repetition_penalty", 1) != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options.get("temperature", 1) != 1:
        chosen.append(TemperatureLogitsWarper(options["temperature"]))
    if options.get("top_k", 50) != 0:
        chosen.append(TopKLogitsWarper(options.get("top_k", 50)))
    if options.get("top_p", 1) < 1:
        chosen.append(TopPLogitsWarper(float(options["top_p"])))
    if options.get("min_p", 0) > 0:
        chosen.append(MinPLogitsWarper(float(options["min_p"])))
    return chosen


def sampling_distribution(
    logits: torch.Tensor, options: Row, token_ids: list[int] | None = None
) -> torch.Tensor:
    """Probabilities in float64 that `transformers` would sample from."""
    scores = processors(options)(
        torch.tensor([token_ids or []], dtype=torch.long), logits.double()[None]
    )
    return scores[0].softmax(-1)


def draw(probabilities: torch.Tensor, u: float) -> tuple[int, float]:
    """The inverse CDF over falling probability, and how near u is to a step."""
    order = torch.argsort(probabilities, descending=True, stable=True)
    cumulative = probabilities[order].cumsum(0)
    n = int((cumulative <= u * cumulative[-1]).sum())
    return int(order[n]), float((cumulative - u).abs().min())


# --- Comparison ---------------------------------------------------------------


def check_logits(ours: torch.Tensor, reference: torch.Tensor, what: str) -> None:
    """Fail with the place of the largest difference and the values around it."""
    assert ours.shape == reference.shape, f"{what}: {ours.shape} not {reference.shape}"
    tolerance = LOGIT_TOLERANCE * float(reference.abs().max())
    difference = (ours - reference).abs()
    worst = int(difference.argmax())
    position, token = divmod(worst, reference.shape[1])
    if not float(difference.max()) <= tolerance:
        shown = slice(max(token - 2, 0), token + 3)
        pytest.fail(
            f"{what}: largest difference {float(difference.max()):.3g} at position "
            f"{position}, token {token}; tolerance {tolerance:.3g}\n"
            f"  ours      {ours[position, shown].tolist()}\n"
            f"  reference {reference[position, shown].tolist()}",
            pytrace=False,
        )


def random_state(config: Any, seed: int) -> State:
    """Random weights whose greedy text is not one token for ever.

    Matrices are scaled by their inputs, so that every layer outweighs the
    embedding, which a tied head would repeat; biases and norms are random too.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    state = {}
    for name, tensor in GPT2LMHeadModel(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            is_scale = "ln_" in name and "weight" in name
            state[name] = noise * 0.2 + (1 if is_scale else 0)
        elif ".h." in name:
            state[name] = noise * 2 / tensor.shape[0] ** 0.5
        elif "wte" in name or "lm_head" in name:
            state[name] = noise * 0.1
        else:
            state[name] = noise * 0.2
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def save_network(folder: Path, config: Any, seed: int) -> Path:
    """Save a random network as the Hub lays it out, without a tokenizer."""
    network = GPT2LMHeadModel(config)
    network.load_state_dict(random_state(config, seed))
    network.save_pretrained(folder)
    return folder
