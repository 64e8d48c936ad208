"""Interventions against transformers with forward hooks that do the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
import torch

from conftest import Dbt
from runs import TWIN, Gpt2, Row, load_checkpoint
from text_reference import Reference

TOLERANCE = 1e-5  # of the largest logit
NEW_TOKENS = 6
BLOCKS, HEADS, WIDTH, INNER = 12, 4, 128, 512
TEXTS = (
    "Elizabeth was",
    "It is a truth universally acknowledged, that a single man",
    "Mr. Darcy walked",
    "Emma Woodhouse, handsome, clever, and rich",
)
# as long as any
SOURCE = "Mr. Bennet was so odd a mixture of quick parts, sarcastic humour, reserve, and"

TYPES = {
    "prompt_id": "integer",
    "layer": "text",
    "head": "integer",
    "feature": "integer",
    "position": "integer",
    "what": "text",
    "value": "float8",
    "source_prompt_id": "integer",
    "source_position": "integer",
    "ordinal": "integer",
}

# what changes a layer's activations of a batch: [prompts, positions, n] -> the same
Change = Callable[[torch.Tensor], torch.Tensor]


# --- transformers with hooks --------------------------------------------------


@contextmanager
def hooked(model: Any, layer: str, change: Change) -> Iterator[None]:
    """Change what a layer of ours computes, where transformers has it."""
    network = model.transformer
    block, name = None, layer
    if layer.startswith("h."):
        number, name = layer[2:].split(".", 1)
        block = network.h[int(number)]
    read: list[torch.Tensor] = []

    def whole(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def third(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        parts = list(out.chunk(3, dim=-1))
        number = "qkv".index(name[-1])
        parts[number] = change(parts[number])
        return torch.cat(parts, dim=-1)

    def after_residual(_: Any, __: Any, out: Any) -> Any:
        x = change(read[-1] + out[0]) - read[-1]
        return (x, *out[1:])

    if block is None:
        module = network.drop if name == "embedding" else getattr(network, name)
        handles = [module.register_forward_hook(whole)]
    elif name in ("ln_1", "ln_2"):
        handles = [getattr(block, name).register_forward_hook(whole)]
    elif name.startswith("attn.c_attn."):
        handles = [block.attn.c_attn.register_forward_hook(third)]
    elif name == "attn":
        handles = [
            block.attn.c_proj.register_forward_pre_hook(lambda _, x: (change(x[0]),))
        ]
    elif name == "attn.c_proj":
        handles = [
            block.register_forward_pre_hook(lambda _, x: read.append(x[0])),
            block.attn.register_forward_hook(after_residual),
        ]
    elif name == "mlp.c_fc":
        handles = [block.mlp.act.register_forward_hook(whole)]
    else:
        assert name == "mlp.c_proj"
        handles = [block.register_forward_hook(whole)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def changed_by(
    rows: list[Row], ids: list[int], prompts: list[int], lengths: list[int]
) -> Change:
    """The interventions on one layer, on a batch padded at its end.

    Args:
        rows: in the order in which they hold.
        ids: the prompts' prompt_id.
        prompts: how many tokens each prompt has.
        lengths: how many each text has by now.

    """

    def change(x: torch.Tensor) -> torch.Tensor:
        before, x = x, x.clone()
        places = [(n, p) for n, tokens in enumerate(prompts) for p in range(tokens)]
        mean = torch.stack([before[n, p] for n, p in places]).mean(0)
        for row in rows:
            features = slice(None)
            if row.get("head") is not None:
                size = x.shape[-1] // HEADS
                features = slice(row["head"] * size, (row["head"] + 1) * size)
            elif row.get("feature") is not None:
                features = slice(row["feature"], row["feature"] + 1)
            for n, prompt_id in enumerate(ids):
                if row.get("prompt_id") not in (None, prompt_id):
                    continue
                for p in range(lengths[n]):
                    if row.get("position") not in (None, p):
                        continue
                    old = before[n, p, features]
                    what, value = row["what"], row.get("value")
                    if what == "replace":
                        source = ids.index(row["source_prompt_id"])
                        place = row.get("source_position")
                        if place is None:
                            if row.get("position") is None and p >= prompts[n]:
                                continue
                            place = p
                        new = before[source, place, features]
                    else:
                        new = {
                            "zero": lambda: torch.zeros_like(old),
                            "mean": lambda: mean[features],
                            "scale": lambda: old * value,
                            "add": lambda: old + value,
                            "set": lambda: torch.full_like(old, value),
                        }[what]()
                    x[n, p, features] = new
        return x

    return change


@torch.no_grad()
def patched(
    reference: Reference, rows: list[Row], prompts: dict[int, list[int]]
) -> dict[int, tuple[list[int], torch.Tensor]]:
    """Greedy tokens of each prompt, and the logits of all places that were read.

    All prompts are one batch, since a row may read another's activations.
    """
    model, ids = reference.model, list(prompts)
    texts = [[*prompts[n]] for n in ids]
    n_prompt = [len(text) for text in texts]
    logits = torch.empty(0)
    for _ in range(NEW_TOKENS):
        lengths = [len(text) for text in texts]
        padded = [text + [0] * (max(lengths) - len(text)) for text in texts]
        hooks = [
            hooked(
                model,
                layer,
                changed_by(
                    sorted(
                        (row for row in rows if row["layer"] == layer),
                        key=lambda row: row.get("ordinal") or 0,
                    ),
                    ids,
                    n_prompt,
                    lengths,
                ),
            )
            for layer in {row["layer"] for row in rows}
        ]
        for hook in hooks:
            hook.__enter__()
        logits = model(torch.tensor(padded)).logits
        for hook in hooks:
            hook.__exit__(None, None, None)
        for n, text in enumerate(texts):
            text.append(int(logits[n, len(text) - 1].argmax()))
    return {
        prompt_id: (texts[n][n_prompt[n] :], logits[n, : len(texts[n]) - 1])
        for n, prompt_id in enumerate(ids)
    }


# --- Ours ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Reference:
    """In float64: no error but ours."""
    found = Reference(TWIN)
    found.model.double()
    assert (found.config.n_layer, found.config.n_head) == (BLOCKS, HEADS)
    assert found.config.n_embd == WIDTH
    return found


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gpt2]:
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(
        dbt,
        connection,
        "test_interventions",
        tmp_path_factory.mktemp("target"),
        variables={
            "gpt2_options": {"max_new_tokens": NEW_TOKENS},
            "gpt2_all_logits": True,
            "gpt2_interventions": "test_interventions.changes",
        },
    )
    yield runs
    runs.drop()


def write(gpt2: Gpt2, rows: list[Row]) -> None:
    """Make the relation of interventions."""
    columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    gpt2.execute(f"drop table if exists {gpt2.schema}.changes")
    gpt2.execute(f"create table {gpt2.schema}.changes ({columns})")
    for row in rows:
        gpt2.execute(
            f"insert into {gpt2.schema}.changes "
            f"values ({', '.join(['%s'] * len(TYPES))})",
            [row.get(name) for name in TYPES],
        )


def layers() -> list[str]:
    """All of the network that take interventions, by their paths."""
    inner = ("ln_1", "attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    parts = (*inner, *(f"attn.c_attn.{letter}" for letter in "qkv"))
    blocks = [f"h.{n}.{part}" for n in range(BLOCKS) for part in parts]
    return ["embedding", *blocks, "ln_f"]


def has_heads(layer: str) -> bool:
    return layer.endswith((".attn", ".q", ".k", ".v"))


def random_row(rng: random.Random, prompt_id: int, tokens: int, what: str) -> Row:
    """An intervention on a prompt of so many tokens."""
    layer = rng.choice(layers())
    row: Row = {"prompt_id": prompt_id, "layer": layer, "what": what}
    width = INNER if layer.endswith("c_fc") else WIDTH
    part = rng.choice(("all", "head", "feature"))
    if has_heads(layer) and part != "feature":
        row["head"] = rng.randrange(HEADS)
    elif part == "feature":
        row["feature"] = rng.randrange(width)
    if rng.random() < 0.6:
        row["position"] = rng.randrange(tokens + NEW_TOKENS - 1)
    if what in ("scale", "add", "set"):
        row["value"] = rng.choice((-2.0, -0.5, 0.25, 1.5, 3.0))
    if what == "replace":
        row["source_prompt_id"] = 0
        if row.get("position", 0) >= tokens or rng.random() < 0.5:
            row["source_position"] = rng.randrange(5)
    return row


def compare(
    gpt2: Gpt2, reference: Reference, rows: list[Row], ids: list[int]
) -> dict[int, tuple[list[int], torch.Tensor]]:
    """Logits at all places, and the greedy text, beside transformers'."""
    tokens = gpt2.prompt_token_ids()
    expected = patched(reference, rows, {n: tokens[n] for n in ids})
    completions = gpt2.completions()
    for prompt_id, (token_ids, logits) in expected.items():
        row = [row for row in rows if row.get("prompt_id") == prompt_id]
        ours = gpt2.logits(prompt_id).double()
        assert ours.shape == logits.shape, row
        error = (ours - logits).abs().max() / logits.abs().max()
        assert error < TOLERANCE, (prompt_id, row, error)
        assert completions[prompt_id]["token_ids"] == token_ids, row
    return expected


# --- Tests --------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts() -> list[Row]:
    """The source, two clean ones, and 20 for an intervention each."""
    texts = [SOURCE, *TEXTS[:2], *(TEXTS[n % len(TEXTS)] for n in range(20))]
    return [{"prompt_id": n, "prompt": text} for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def clean(gpt2: Gpt2, prompts: list[Row]) -> dict[int, list[float]]:
    """The logits of each prompt without interventions."""
    gpt2.complete(prompts, gpt2_interventions=None)
    return {row["prompt_id"]: gpt2.logits(row["prompt_id"]) for row in prompts}


def test_random_interventions(
    gpt2: Gpt2, reference: Reference, prompts: list[Row], clean: dict[int, torch.Tensor]
) -> None:
    """20 prompts with an intervention each, in one run with three clean ones."""
    rng = random.Random(22)
    kinds = ("zero", "mean", "scale", "add", "set", "replace")
    lengths = {n: len(ids) for n, ids in gpt2.prompt_token_ids().items()}
    assert max(lengths.values()) == lengths[0]
    rows = [
        random_row(rng, n, lengths[n], kinds[n % len(kinds)]) for n in range(3, 23)
    ]
    assert {row["what"] for row in rows} == {*kinds}
    write(gpt2, rows)
    gpt2.complete(prompts)
    expected = compare(gpt2, reference, rows, [row["prompt_id"] for row in prompts])
    for n in range(3):
        assert torch.equal(gpt2.logits(n), clean[n]), n
    changed = [n for n in range(3, 23) if not torch.equal(gpt2.logits(n), clean[n])]
    assert len(changed) >= 18  # a change of one feature may be below float32
    assert len(expected) == 23

    # without them all is as it was
    gpt2.complete(prompts, gpt2_interventions=None)
    for row in prompts:
        n = row["prompt_id"]
        assert torch.equal(gpt2.logits(n), clean[n]), n
