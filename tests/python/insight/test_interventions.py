"""Interventions against transformers with forward hooks that do the same."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
import torch

from conftest import Dbt
from runs import TWIN, Gpt2, Row, load_checkpoint
from text_reference import Reference

pytestmark = pytest.mark.long

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
SOURCE = (
    "Mr. Bennet was so odd a mixture of quick parts, sarcastic humour, reserve, and"
)

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


def changed_value(
    what: str, old: torch.Tensor, mean: torch.Tensor, value: float
) -> torch.Tensor:
    """What becomes of some channels of a place."""
    if what == "scale":
        return old * value
    if what == "add":
        return old + value
    if what == "mean":
        return mean
    return torch.full_like(old, value if what == "set" else 0)


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
                        new = changed_value(what, old, mean[features], value)
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
            [(row | {"layer": row.get("name", row["layer"])}).get(n) for n in TYPES],
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
def clean(gpt2: Gpt2, prompts: list[Row]) -> dict[int, torch.Tensor]:
    """The logits of each prompt without interventions."""
    write(gpt2, [])  # as without the var, and dbt need not parse anew
    gpt2.complete(prompts)
    return {row["prompt_id"]: gpt2.logits(row["prompt_id"]) for row in prompts}


def test_random_interventions(
    gpt2: Gpt2, reference: Reference, prompts: list[Row], clean: dict[int, torch.Tensor]
) -> None:
    """20 prompts with an intervention each, in one run with three clean ones."""
    rng = random.Random(22)
    kinds = ("zero", "mean", "scale", "add", "set", "replace")
    lengths = {n: len(ids) for n, ids in gpt2.prompt_token_ids().items()}
    assert max(lengths.values()) == lengths[0]
    rows = [random_row(rng, n, lengths[n], kinds[n % len(kinds)]) for n in range(3, 23)]
    assert {row["what"] for row in rows} == {*kinds}
    write(gpt2, rows)
    gpt2.complete(prompts)
    expected = compare(gpt2, reference, rows, [row["prompt_id"] for row in prompts])
    for n in range(3):
        assert torch.equal(gpt2.logits(n), clean[n]), n
    changed = [n for n in range(3, 23) if not torch.equal(gpt2.logits(n), clean[n])]
    assert len(changed) >= 18  # a change of one feature may be below float32
    assert len(expected) == 23

    # only a prompt whose intervention changes is completed anew
    rows = [row for row in rows if row["what"] not in ("mean", "replace")]
    write(gpt2, rows)
    gpt2.complete(prompts)
    attempts = completion_ids(gpt2)
    changed_row = next(row for row in rows if row["what"] == "scale")
    changed_row["value"] += 1
    write(gpt2, rows)
    gpt2.complete(prompts)
    now = completion_ids(gpt2)
    assert [n for n in now if now[n] != attempts[n]] == [changed_row["prompt_id"]]
    compare(gpt2, reference, rows, [changed_row["prompt_id"]])

    # without the var all that had one is as it was
    before = completion_ids(gpt2)
    gpt2.complete(prompts, gpt2_interventions=None)
    now = completion_ids(gpt2)
    assert {n for n in now if now[n] != before[n]} == {row["prompt_id"] for row in rows}
    for row in rows:
        n = row["prompt_id"]
        assert torch.equal(gpt2.logits(n), clean[n]), n


def completion_ids(gpt2: Gpt2) -> dict[int, str]:
    """The attempt at each prompt."""
    found = gpt2.query(
        f"select prompt_id, completion_id::text from {gpt2.schema}.gpt2_prompts "
        "order by prompt_id"
    )
    return {row["prompt_id"]: row["completion_id"] for row in found}


def test_several_on_a_layer(gpt2: Gpt2, reference: Reference) -> None:
    """They hold in their order, and all read what the layer wrote."""
    texts = (SOURCE, *TEXTS, TEXTS[0])
    prompts = [{"prompt_id": n, "prompt": text} for n, text in enumerate(texts)]
    rows = [
        # of all prompts
        {"layer": "h.2.attn", "head": 1, "what": "scale", "value": 0.5},
        {
            "layer": "h.1.ln_2",
            "name": "blocks.1.ln2.hook_normalized",
            "feature": 3,
            "what": "mean",
        },
        {
            "prompt_id": 3,
            "layer": "h.4.mlp.c_proj",
            "name": "gpt2_h_4_mlp_c_proj",
            "what": "set",
            "feature": 7,
            "position": 1,
            "value": 2,
            "ordinal": 2,
        },
        {"prompt_id": 3, "layer": "h.4.mlp.c_proj", "what": "scale", "value": 0.9}
        | {"ordinal": 1},
        {
            "prompt_id": 4,
            "layer": "h.6.attn.c_proj",
            "name": "blocks.6.hook_resid_mid",
            "what": "replace",
            "position": 2,
            "source_prompt_id": 0,
            "source_position": 1,
        },
        # the source is changed, too, and read as it was: at later steps as well
        {"prompt_id": 0, "layer": "h.7.attn", "what": "zero"},
        {
            "prompt_id": 5,
            "layer": "h.7.attn",
            "what": "replace",
            "source_prompt_id": 0,
            "source_position": 1,
        },
        # all positions of the prompt, of keys, from which blocks are made
        {
            "prompt_id": 2,
            "layer": "h.8.attn.c_attn.k",
            "name": "blocks.8.attn.hook_k",
            "what": "replace",
            "source_prompt_id": 0,
        },
    ]
    write(gpt2, rows)
    gpt2.complete(prompts)
    compare(gpt2, reference, rows, [row["prompt_id"] for row in prompts])


@torch.no_grad()
def test_batches_scores_and_choices(gpt2: Gpt2, reference: Reference) -> None:
    """Every batch has them, and the likelihoods of prompts and choices, too."""
    rows = [{"layer": "h.3.mlp.c_fc", "what": "scale", "value": 1.5}]
    choice = " Elizabeth was not at all surprised"
    prompts = [
        {"prompt_id": 0, "prompt": TEXTS[1], "max_new_tokens": 0},
        {"prompt_id": 1, "prompt": TEXTS[2]},
        {"prompt_id": 2, "prompt": TEXTS[3], "choices": [choice, " the"]},
        {"prompt_id": 3, "prompt": TEXTS[0]},
    ]
    write(gpt2, rows)
    gpt2.complete(prompts, "--threads", "2", batch_prompts=1)
    tokens = {n: ids for n, ids in gpt2.prompt_token_ids().items() if n < len(prompts)}
    batches = gpt2.query(
        f"select distinct batch from {gpt2.schema}.gpt2_prompts where prompt_id < 4"
    )
    assert len(batches) == 4
    expected = patched(reference, rows, tokens)
    found = gpt2.completions()
    for n in (1, 3):
        assert found[n]["token_ids"] == expected[n][0]

    def likelihood(token_ids: list[int], first: int) -> float:
        change = changed_by(rows, [0], [first], [len(token_ids)])
        with hooked(reference.model, "h.3.mlp.c_fc", change):
            logprobs = reference.model(torch.tensor([token_ids])).logits[0]
        logprobs = logprobs.log_softmax(-1)
        return sum(
            logprobs[i - 1, token_ids[i]].item() for i in range(first, len(token_ids))
        )

    [score] = gpt2.query(f"select logprob from {gpt2.schema}.gpt2_scores")
    assert score["logprob"] == pytest.approx(likelihood(tokens[0], 1), rel=1e-5)
    whole = reference.encode({"prompt": TEXTS[3] + choice})
    ours = gpt2.query(
        f"select log_likelihood from {gpt2.schema}.gpt2_choices where choice_number = 1"
    )
    assert ours[0]["log_likelihood"] == pytest.approx(
        likelihood(whole, len(tokens[2])), rel=1e-5
    )


# Rows that stop the run, and what the message has of them.
BAD_ROWS: list[tuple[list[Row], list[str]]] = [
    (
        [{"layer": "h.0.atn", "what": "zero"}],
        ["h.0.atn", "did you mean gpt2_h_0_attn?"],
    ),
    ([{"layer": "lm_head", "what": "zero"}], ["no layer is named", "state_dict"]),
    ([{"layer": "", "what": "zero"}], ["no layer is named"]),
    ([{"layer": None, "what": "zero"}], ["layer is NULL"]),
    ([{"layer": "h.0.attn", "what": "ablate"}], ["what is", "ablate", "zero, mean"]),
    ([{"layer": "h.0.attn"}], ["what is NULL"]),
    ([{"layer": "h.0.attn", "what": "zero", "head": 4}], ["head is 4", "give 0 to 3"]),
    ([{"layer": "h.0.attn", "what": "zero", "head": -1}], ["head is -1"]),
    ([{"layer": "h.0.ln_1", "what": "zero", "head": 0}], ["has no heads"]),
    (
        [{"layer": "h.0.attn", "what": "zero", "head": 0, "feature": 0}],
        ["has a head and a feature"],
    ),
    (
        [{"layer": "h.0.attn", "what": "zero", "feature": 128}],
        ["feature is 128", "give 0 to 127"],
    ),
    ([{"layer": "h.0.mlp.c_fc", "what": "zero", "feature": 512}], ["give 0 to 511"]),
    ([{"layer": "h.0.attn", "what": "scale"}], ["value is NULL"]),
    (
        [{"layer": "h.0.attn", "what": "scale", "value": float("nan")}],
        ["value is", "NaN", "float32"],
    ),
    ([{"layer": "h.0.attn", "what": "add", "value": 1e300}], ["float32"]),
    ([{"layer": "h.0.attn", "what": "zero", "value": 1}], ["zero takes none"]),
    ([{"layer": "h.0.attn", "what": "zero", "prompt_id": 9}], ["prompt_id 9"]),
    ([{"layer": "h.0.attn", "what": "zero", "position": 99}], ["position is 99"]),
    ([{"layer": "h.0.attn", "what": "replace"}], ["source_prompt_id is NULL"]),
    (
        [{"layer": "h.0.attn", "what": "replace", "source_prompt_id": 9}],
        ["source_prompt_id 9 is not among the prompts"],
    ),
    (
        [{"layer": "h.0.attn", "what": "zero", "source_prompt_id": 0}],
        ["has a source", "zero takes none"],
    ),
    (
        [
            {"layer": "h.0.attn", "what": "replace", "source_prompt_id": 3}
            | {"source_position": 99}
        ],
        ["there is no position 99"],
    ),
    (
        [{"layer": "h.0.attn", "what": "replace", "source_prompt_id": 3}],
        ["give a position, or prompts of the same length"],
    ),
    (
        [
            {"layer": "h.0.attn", "what": "replace", "source_prompt_id": 0}
            | {"prompt_id": 1, "position": 0}
        ],
        ["different batches", "batch_prompts", "batch_memory"],
    ),
    ([{"layer": "h.0.attn", "what": "mean"}], ["different batches"]),
    (
        [
            {"layer": "h.0.attn", "what": "zero", "head": 1},
            {"layer": "blocks.0.attn.hook_z", "what": "zero", "feature": 40},
        ],
        ["give both an ordinal"],
    ),
]


@pytest.fixture(scope="module")
def reading(gpt2: Gpt2) -> str:
    """The SQL that checks the rows, of a run with a prompt a batch."""
    prompts = [
        {"prompt_id": n, "prompt": text, "max_new_tokens": 1}
        for n, text in enumerate(TEXTS)
    ]
    write(gpt2, [])
    gpt2.write_prompts(prompts)
    gpt2.run("--select", "gpt2_prompts", "--full-refresh", batch_prompts=1)
    call = (
        f"{{{{ dbt_nn.resolved_interventions(ref('gpt2_prompts'), "
        f"'{gpt2.schema}.test_prompts', '{gpt2.schema}.changes', "
        "source('gpt2', 'config'), 'gpt2') }}"
    )
    return gpt2.dbt(
        "--quiet",
        "compile",
        "--inline",
        call,
        *gpt2.arguments(batch_prompts=1),
        env=gpt2.environment,
    ).stdout


@pytest.mark.parametrize(
    ("rows", "message"), BAD_ROWS, ids=[" ".join(parts) for _, parts in BAD_ROWS]
)
def test_bad_rows(
    gpt2: Gpt2, reading: str, rows: list[Row], message: list[str]
) -> None:
    write(gpt2, rows)
    with pytest.raises(psycopg2.Error) as caught:
        gpt2.query(reading)
    for part in (*message, "test_interventions.changes"):
        assert part in str(caught.value.diag.message_primary)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("'h.0.attn' as layer", "has no column what"),
        ("'zero' as what", "has no column layer"),
        ("'h.0.attn' as layer, 'zero' as what, 1 as haed", "has a column haed"),
        ("'h.0.attn' as layer, 'zero' as what, 'x' as head", 'head is "x"'),
    ],
)
def test_bad_relation(gpt2: Gpt2, reading: str, columns: str, message: str) -> None:
    gpt2.execute(f"drop table if exists {gpt2.schema}.changes")
    gpt2.execute(f"create table {gpt2.schema}.changes as select {columns}")
    with pytest.raises(psycopg2.Error, match=re.escape(message)):
        gpt2.query(reading)


def test_a_bad_row_stops_the_run(gpt2: Gpt2, reading: str) -> None:
    """Before anything of an earlier run is replaced."""
    assert reading
    before = completion_ids(gpt2)
    write(gpt2, [{"prompt_id": 1, "layer": "h.99.attn", "what": "zero"}])
    failed = gpt2.run(check=False, batch_prompts=1)
    assert failed.returncode == 1
    assert 'no layer is named "h.99.attn"' in failed.stdout
    assert completion_ids(gpt2) == before
    refused = gpt2.run(
        *("--select", "ddpm_requests"), check=False, ddpm_interventions="changes"
    )
    assert refused.returncode != 0
    assert "the var ddpm_interventions is set" in refused.stdout
