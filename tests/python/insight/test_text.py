"""gpt2_insight against transformers: hidden states, attentions and hooks in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import psycopg2
import pytest
import torch
from transformers import GPT2LMHeadModel

from conftest import Dbt
from runs import TWIN, Gpt2, Row, load_checkpoint
from text_reference import Reference

# what is asked of the numbers: of the largest, or of 1
TOLERANCE = 1e-5
TEXTS = (
    "It is a truth universally acknowledged",
    "Elizabeth was Elizabeth was Elizabeth",
    "a",
    "Él dijo: 🦋 ¡año!",
    "She is not a woman of sense, and he is not a man of sense",
    "\n\nChapter 3\n\n",
    "Mr. Darcy",
    "zzzz!!",
    "I am sure you will be very happy, ",
    "the the the the",
)
NEW_TOKENS = 3


class Inside:
    """One sequence in transformers, every part of it, in float64."""

    def __init__(self, model: GPT2LMHeadModel, token_ids: list[int]):
        """Read the tokens, all but the last: it was not read."""
        self.model, self.token_ids = model, token_ids
        self.caught: dict[str, torch.Tensor] = {}
        hooks = []
        for n, block in enumerate(model.transformer.h):
            for name, module in (
                (f"{n}.z", block.attn.c_proj),
                (f"{n}.mid", block.ln_2),
            ):
                hooks.append(module.register_forward_pre_hook(self._catch(name)))
            hooks.append(block.register_forward_hook(self._catch_output(f"{n}.post")))
            hooks.append(
                block.mlp.register_forward_hook(self._catch_output(f"{n}.mlp"))
            )
        with torch.no_grad():
            self.output = model(
                torch.tensor([token_ids]),
                output_attentions=True,
                output_hidden_states=True,
            )
        for hook in hooks:
            hook.remove()

    def _catch(self, name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            self.caught[name] = inputs[0][0].detach()

        return hook

    def _catch_output(self, name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            self.caught[name] = found.reshape(-1, found.shape[-1]).detach()

        return hook

    @cached_property
    def stream(self) -> dict[str, torch.Tensor]:
        """Label -> the residual stream there, [positions, channels]."""
        layers = len(self.model.transformer.h)
        found = {}
        for n in range(layers):
            found[f"{n}_pre"] = self.output.hidden_states[n][0]
            found[f"{n}_mid"] = self.caught[f"{n}.mid"]
        return found | {"final_post": self.caught[f"{layers - 1}.post"]}

    @torch.no_grad()
    def lens(self, label: str) -> torch.Tensor:
        """Log-probabilities that this point of the stream gives."""
        hidden = self.model.transformer.ln_f(self.stream[label])
        return self.model.lm_head(hidden).log_softmax(-1)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(
        TWIN, dtype=torch.float64, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gpt2]:
    """The prompts complete, and looked into; the last has no new token."""
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(dbt, connection, "test_insight", tmp_path_factory.mktemp("target"))
    runs.write_prompts(
        {
            "prompt_id": n,
            "prompt": text,
            "max_new_tokens": NEW_TOKENS if n < len(TEXTS) - 1 else 0,
        }
        for n, text in enumerate(TEXTS)
    )
    runs.run("--select", "gpt2", "gpt2_insight")
    yield runs
    runs.drop()


@pytest.fixture(scope="module")
def read(gpt2: Gpt2) -> dict[int, list[int]]:
    """Each sequence's tokens by prompt_id, that which was not read at the end."""
    prompts = gpt2.prompt_token_ids()
    return {n: prompts[n] + row["token_ids"] for n, row in gpt2.completions().items()}


@pytest.fixture(scope="module")
def inside(model: GPT2LMHeadModel, read: dict[int, list[int]]) -> dict[int, Inside]:
    last = len(TEXTS) - 1
    return {n: Inside(model, ids if n == last else ids[:-1]) for n, ids in read.items()}


def rows_of(gpt2: Gpt2, model: str, order: str) -> dict[int, list[Row]]:
    """A relation's rows by prompt_id."""
    found: dict[int, list[Row]] = {}
    for row in gpt2.query(f"select * from {gpt2.schema}.gpt2_{model} order by {order}"):
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def near(value: float) -> Any:
    return pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)


def test_tokens(gpt2: Gpt2, read: dict[int, list[int]]) -> None:
    prompts = gpt2.prompt_token_ids()
    reference = Reference(TWIN)
    found = rows_of(gpt2, "insight_tokens", "position")
    assert sorted(found) == list(range(len(TEXTS)))
    for n, rows in found.items():
        ids, is_last = read[n], n == len(TEXTS) - 1
        held = ids if is_last else ids[:-1]
        assert [row["token_id"] for row in rows] == held
        assert [row["position"] for row in rows] == list(range(len(held)))
        assert [row["next_token_id"] for row in rows] == ids[1:] + [None] * is_last
        assert [row["is_generated"] for row in rows] == [
            i >= len(prompts[n]) for i in range(len(held))
        ]
        pieces = [row["piece"] for row in rows]
        assert [row["next_piece"] for row in rows[:-1]] == pieces[1:]
        whole = "".join(pieces) + (rows[-1]["next_piece"] or "")
        assert whole == reference.decode(ids)


def test_logit_lens(
    gpt2: Gpt2, read: dict[int, list[int]], inside: dict[int, Inside]
) -> None:
    """Every label at every place: rank, logprob, divergence, entropy, alternatives."""
    layers = 12
    for n, rows in rows_of(gpt2, "logit_lens", "position").items():
        network, ids = inside[n], read[n]
        by_label: dict[str, list[Row]] = {}
        for row in rows:
            by_label.setdefault(row["label"], []).append(row)
        assert set(by_label) == set(network.stream)
        final = network.lens("final_post")
        for label, places in by_label.items():
            ours = network.lens(label)
            assert len(places) == len(network.token_ids)
            for row in places:
                position = row["position"]
                q, p = ours[position], final[position]
                assert row["layer"] == (
                    layers if label == "final_post" else int(label.split("_")[0])
                )
                if position + 1 < len(ids):
                    token = ids[position + 1]
                    assert row["next_token_logprob"] == near(q[token].item())
                    likelier = int((q > q[token] + TOLERANCE).sum())
                    nearly = int((q >= q[token] - TOLERANCE).sum())
                    assert likelier < row["next_token_rank"] <= nearly
                else:
                    assert row["next_token_logprob"] is None
                    assert row["next_token_rank"] is None
                divergence = (p.exp() * (p - q)).sum().item()
                assert row["kl_divergence"] == near(divergence)
                assert row["entropy"] == near(-(q.exp() * q).sum().item())
                logprobs, tokens = q.topk(5)
                assert [a["logprob"] for a in row["alternatives"]] == near(
                    logprobs.tolist()
                )
                if float(-logprobs.diff().max()) > TOLERANCE:
                    found = [a["token_id"] for a in row["alternatives"]]
                    assert found == tokens.tolist()


def test_surprise(gpt2: Gpt2, read: dict[int, list[int]], model: Any) -> None:
    """Bits of every token, that which was not read among them; words by blanks."""
    reference = Reference(TWIN)
    for n, rows in rows_of(gpt2, "surprise", "position").items():
        ids = read[n]
        assert [row["token_id"] for row in rows] == ids
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert rows[0]["bits"] is None
        assert [row["bits"] for row in rows[1:]] == near(
            [
                -logprobs[i, token].item() / math.log(2)
                for i, token in enumerate(ids[1:])
            ]
        )
        words = {row["word_number"]: row["word"] for row in rows}
        assert [*words] == list(range(1, len(words) + 1))
        spoken = [word for word in words.values() if word]
        assert spoken == reference.decode(ids).split()
