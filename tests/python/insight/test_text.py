"""gpt2_insight against transformers: hidden states, attentions and hooks in float64."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import Dbt
from dbt_nn import generate as generate_network
from runs import TWIN, Gpt2, Row, copy_bare_project, load_checkpoint
from text_reference import Reference, save_network

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
                block.attn.c_attn.register_forward_hook(self._catch_values(f"{n}.v"))
            )
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

    def _catch_values(self, name: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            self.caught[name] = output[0].detach().chunk(3, -1)[2]

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
    relation = f"{gpt2.schema}.{gpt2.network}_{model}"
    for row in gpt2.query(f"select * from {relation} order by {order}"):
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


def by_head(rows: list[Row]) -> dict[tuple[int, int], list[Row]]:
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["layer"], row["head"]), []).append(row)
    return found


def test_attention_pattern(gpt2: Gpt2, inside: dict[int, Inside]) -> None:
    """The weights of every query, and the scores that they are the softmax of."""
    order = "query_position, key_position"
    for n, rows in rows_of(gpt2, "attention_pattern", order).items():
        attentions = inside[n].output.attentions
        length = len(inside[n].token_ids)
        heads = by_head(rows)
        assert len(heads) == len(attentions) * attentions[0].shape[1]
        for (layer, head), weights in heads.items():
            pairs = [(row["query_position"], row["key_position"]) for row in weights]
            assert pairs == [(q, k) for q in range(length) for k in range(q + 1)]
            expected = attentions[layer][0, head]
            assert [row["pattern"] for row in weights] == near(
                [expected[pair].item() for pair in pairs]
            )
            scores = torch.full((length, length), -math.inf, dtype=torch.float64)
            for pair, row in zip(pairs, weights, strict=True):
                scores[pair] = row["attn_score"]
            torch.testing.assert_close(
                scores.softmax(-1), expected, rtol=TOLERANCE, atol=TOLERANCE
            )


def detection_patterns(token_ids: list[int]) -> dict[str, torch.Tensor]:
    """Those of TransformerLens's head_detector, [queries, keys]."""
    tokens = torch.tensor(token_ids)
    length = len(token_ids)
    same = (tokens[:, None] == tokens[None, :]).tril(-1)
    induction = torch.zeros_like(same)
    induction[:, 1:] = same[:, :-1]
    previous = torch.zeros_like(same)
    previous[1:, :-1] = torch.eye(length - 1, dtype=torch.bool)
    return {
        "previous_token": previous,
        "duplicate_token": same,
        "induction": induction.tril(),
    }


def test_head_scores(gpt2: Gpt2, inside: dict[int, Inside]) -> None:
    found = rows_of(gpt2, "head_scores", "layer, head")
    assert sorted(found) == sorted(inside)
    for n, rows in found.items():
        token_ids = inside[n].token_ids
        positions = torch.arange(len(token_ids), dtype=torch.float64)
        back = positions[:, None] - positions[None, :]
        patterns = detection_patterns(token_ids)
        assert len(rows) == 48
        for row in rows:
            weights = inside[n].output.attentions[row["layer"]][0, row["head"]]
            entropy = -torch.special.xlogy(weights, weights).sum(-1)
            assert row["entropy"] == near(entropy.mean().item())
            assert row["mean_distance"] == near((weights * back).sum(-1).mean().item())
            assert row["first_token_share"] == near(weights[:, 0].mean().item())
            for name, keys in patterns.items():
                queries = keys.any(-1)
                score = row[f"{name}_score"]
                if queries.any():
                    on_keys = (weights * keys).sum(-1)[queries]
                    assert score == near(on_keys.mean().item()), name
                else:
                    assert score is None, name
    some = found[1][0]  # Elizabeth was Elizabeth was …
    assert some["induction_score"] is not None
    assert some["duplicate_token_score"] is not None


@torch.no_grad()
def attribution(network: Inside, token: int, position: int) -> dict[str, float]:
    """Each label's part of the token's logit, computed from the hooks."""
    model = network.model
    base, norm = model.transformer, model.transformer.ln_f
    stream = network.stream["final_post"][position]
    scale = (stream.var(unbiased=False) + norm.eps).sqrt()
    size = model.config.n_embd // model.config.n_head

    def part(vector: torch.Tensor) -> float:
        normalized = (vector - vector.mean()) / scale * norm.weight
        return float(normalized @ model.lm_head.weight[token])

    parts = {
        "embed": part(base.wte.weight[network.token_ids[position]]),
        "pos_embed": part(base.wpe.weight[position]),
        "attn_bias": part(sum(block.attn.c_proj.bias for block in base.h)),
        "ln_final_bias": float(norm.bias @ model.lm_head.weight[token]),
    }
    for n, block in enumerate(base.h):
        parts[f"{n}_mlp_out"] = part(network.caught[f"{n}.mlp"][position])
        for head in range(model.config.n_head):
            own = slice(head * size, (head + 1) * size)
            z = network.caught[f"{n}.z"][position, own]
            parts[f"L{n}H{head}"] = part(z @ block.attn.c_proj.weight[own])
    return parts


def check_attribution(rows: list[Row], network: Inside, ids: list[int]) -> None:
    """Every label at every place, and that they add up."""
    logits = network.output.logits[0]
    by_position: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_position.setdefault(row["position"], {})[row["label"]] = row
    followed = range(min(len(network.token_ids), len(ids) - 1))
    assert sorted(by_position) == [*followed]
    for position, labels in by_position.items():
        token = ids[position + 1]
        best = logits[position].topk(2).indices.tolist()
        other = best[1] if best[0] == token else best[0]
        scale = TOLERANCE * max(1, float(logits[position].abs().max()))
        for kind, of in (("logit", token), ("runner_up_logit", other)):
            expected = attribution(network, of, position)
            assert {label: row[kind] for label, row in labels.items()} == pytest.approx(
                expected, abs=scale
            )
            total = sum(row[kind] for row in labels.values())
            assert total == pytest.approx(logits[position, of].item(), abs=1e-4)
        for row in labels.values():
            assert row["logit_difference"] == pytest.approx(
                row["logit"] - row["runner_up_logit"], abs=1e-9
            )


def test_logit_attribution(
    gpt2: Gpt2, read: dict[int, list[int]], inside: dict[int, Inside]
) -> None:
    found = rows_of(gpt2, "logit_attribution", "position")
    assert sorted(found) == sorted(inside)
    for n, rows in found.items():
        check_attribution(rows, inside[n], read[n])


def test_source_attribution(
    gpt2: Gpt2, read: dict[int, list[int]], inside: dict[int, Inside]
) -> None:
    """Values, weighted and through the output weights, against hooks and the heads."""
    heads: dict[tuple[int, int], float] = {}
    for n, rows in rows_of(gpt2, "logit_attribution", "position").items():
        for row in rows:
            if row["head"] is not None:
                key = (n, row["position"])
                heads[key] = heads.get(key, 0) + row["logit"]
    found = rows_of(gpt2, "source_attribution", "position, source_position")
    totals: dict[tuple[int, int], float] = {}
    for n, rows in found.items():
        network = inside[n]
        model, ids = network.model, read[n]
        config, norm = model.config, model.transformer.ln_f
        size = config.n_embd // config.n_head
        by_place = {(row["position"], row["source_position"]): row for row in rows}
        followed = range(min(len(network.token_ids), len(ids) - 1))
        assert sorted(by_place) == [(q, k) for q in followed for k in range(q + 1)]
        for position in followed:
            stream = network.stream["final_post"][position]
            scale = (stream.var(unbiased=False) + norm.eps).sqrt()
            direction = norm.weight * model.lm_head.weight[ids[position + 1]]
            direction = (direction - direction.mean()) / scale
            expected = torch.zeros(position + 1, dtype=torch.float64)
            for layer, block in enumerate(model.transformer.h):
                weights = network.output.attentions[layer][0, :, position]
                values = network.caught[f"{layer}.v"][: position + 1]
                with torch.no_grad():
                    through = block.attn.c_proj.weight @ direction
                for head in range(config.n_head):
                    own = slice(head * size, (head + 1) * size)
                    expected += weights[head, : position + 1] * (
                        values[:, own] @ through[own]
                    )
            ours = [by_place[position, k]["logit"] for k in range(position + 1)]
            largest = float(network.output.logits[0, position].abs().max())
            assert ours == pytest.approx(
                expected.tolist(), abs=TOLERANCE * max(1, largest)
            )
            totals[n, position] = sum(ours)
    assert totals == pytest.approx(heads, abs=1e-4)


def test_layer_norms(gpt2: Gpt2, inside: dict[int, Inside]) -> None:
    """A row for each layer with vectors; those of the stream as transformers has it."""
    for n, rows in rows_of(gpt2, "layer_norms", "position").items():
        network = inside[n]
        layers: dict[str, list[float]] = {}
        for row in rows:
            layers.setdefault(row["layer_name"], []).append(row["norm"])
            block = re.match("gpt2_h_([0-9]+)_", row["layer_name"])
            own = row["layer_name"].removeprefix("gpt2_")
            assert row["part"] == (f"h.{block[1]}" if block else own)
        assert len(layers) == 110
        for name, caught in (("attn", "z"), ("attn_c_proj", "mid")):
            expected = network.caught[f"3.{caught}"].norm(dim=-1)
            assert layers[f"gpt2_h_3_{name}"] == near(expected.tolist())
        embedding = network.stream["0_pre"].norm(dim=-1)
        assert layers["gpt2_embedding"] == near(embedding.tolist())


# --- A network of odd shapes, and options --------------------------------------


@pytest.fixture(scope="module")
def small(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Gpt2, Path]]:
    """A random network with weights of its own for lm_head, and no tokenizer."""
    config = GPT2Config(
        n_layer=2, n_embd=30, n_head=3, n_inner=50, vocab_size=97, n_positions=24,
        bos_token_id=0, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    folder = save_network(tmp_path_factory.mktemp("checkpoint"), config, seed=3)
    load_checkpoint(folder, "small_inside")
    project = copy_bare_project(tmp_path_factory.mktemp("project"))
    network = generate_network.describe(folder, "small", 1)
    for suffix, render in (
        ("", generate_network.render),
        ("_insight", generate_network.render_insight),
    ):
        models = project / "models" / f"small{suffix}"
        generate_network.write(models, render(network, is_ours=True))
    runs = Gpt2(
        dbt,
        connection,
        "test_insight_small",
        tmp_path_factory.mktemp("target"),
        "small",
        project,
        {"small_checkpoint": "small_inside"},
    )
    runs.write_prompts(
        {"prompt_id": n, "prompt_token_ids": ids, "max_new_tokens": 2}
        for n, ids in enumerate(([5, 6, 5, 6, 7], [96], [*range(22)]))
    )
    runs.run("--select", "small", "small_insight")
    yield runs, folder
    runs.drop()


def test_odd_shapes(small: tuple[Gpt2, Path]) -> None:
    """Attribution and attention of a network whose sizes are no powers of two."""
    gpt2, folder = small
    model = GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    prompts = gpt2.prompt_token_ids()
    written = {n: row["token_ids"] for n, row in gpt2.completions().items()}
    found = rows_of(gpt2, "logit_attribution", "position")
    patterns = rows_of(gpt2, "attention_pattern", "query_position, key_position")
    assert sorted(found) == sorted(prompts) == [0, 1, 2]
    for n, rows in found.items():
        ids = prompts[n] + written[n]
        network = Inside(model, ids[:-1])
        check_attribution(rows, network, ids)
        for (layer, head), weights in by_head(patterns[n]).items():
            expected = network.output.attentions[layer][0, head]
            assert [row["pattern"] for row in weights] == near(
                [
                    expected[row["query_position"], row["key_position"]].item()
                    for row in weights
                ]
            )


def test_options(small: tuple[Gpt2, Path]) -> None:
    """What is chosen is there, and nothing else; a line names what is left out."""
    gpt2, _ = small
    options = {"prompt_ids": [0, 2], "layers": [1], "heads": [0, 2], "top_k": 2}
    done = gpt2.run("--select", "small_insight", small_insight=options | {"places": 10})
    assert "small_insight: the option places leaves out the prompts 2" in done.stdout
    lens = rows_of(gpt2, "logit_lens", "position")
    assert [*lens] == [0]
    assert {row["label"] for row in lens[0]} == {"1_pre", "1_mid", "final_post"}
    assert {len(row["alternatives"]) for row in lens[0]} == {2}
    heads = by_head(rows_of(gpt2, "attention_pattern", "query_position")[0])
    assert sorted(heads) == [(1, 0), (1, 2)]
    whole = rows_of(gpt2, "logit_attribution", "position")[0]
    of_heads: dict[int, float] = {}
    for row in whole:
        if (row["layer"], row["head"]) in heads:
            of_heads[row["position"]] = of_heads.get(row["position"], 0) + row["logit"]
    of_sources: dict[int, float] = {}
    for row in rows_of(gpt2, "source_attribution", "position")[0]:
        of_sources[row["position"]] = of_sources.get(row["position"], 0) + row["logit"]
    assert of_sources == pytest.approx(of_heads, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer": [1]},
            'small_insight: no option is named "layer": there are prompt_ids, layers',
        ),
        ({"layers": [2]}, "layers has 2, and the network has 2 layers, from 0 to 1"),
        ({"heads": [0, 3]}, "heads has 3, and the network has 3 heads, from 0 to 2"),
        ({"layers": "all"}, 'layers is "all": give a list of whole numbers from 0'),
        ({"heads": [-1]}, "heads is [-1]: give a list of whole numbers from 0"),
        ({"top_k": 0}, "top_k is 0: give a whole number above 0"),
        ({"places": 1}, "places is 1, and the first sequence has 6 tokens"),
        ({"prompt_ids": [0, 77]}, "prompt_ids has 77, and the layers hold the last"),
        ([1], "small_insight is [1]: give a dict"),
    ],
)
def test_bad_options(small: tuple[Gpt2, Path], options: Any, message: str) -> None:
    done = small[0].run(
        "--select", "small_insight_tokens", check=False, small_insight=options
    )
    assert done.returncode != 0
    assert message in done.stdout.replace("\n", " ")
    assert "Traceback" not in done.stdout


def test_data_tests(small: tuple[Gpt2, Path]) -> None:
    """They pass; and each sees what it is for."""
    gpt2, _ = small
    select = ("--select", "small_insight", *gpt2.arguments())
    gpt2.dbt("test", *select, env=gpt2.environment)
    for relation, change in (
        ("attention_pattern", "pattern = pattern * 1.001 where query_position = 3"),
        ("logit_lens", "kl_divergence = 0.1 where label = 'final_post'"),
        ("logit_attribution", "label = 'embed' where label = 'attn_bias'"),
        ("source_attribution", "logit = logit + 0.01 where source_position = 0"),
    ):
        gpt2.execute(f"update {gpt2.schema}.small_{relation} set {change}")
    done = gpt2.dbt("test", *select, env=gpt2.environment, check=False)
    for name in (
        "attention_pattern_distributions",
        "logit_lens_complete",
        "logit_attribution_adds_up",
        "source_attribution_adds_up",
    ):
        assert re.search(f"FAIL [0-9]+ small_{name}", done.stdout), name


def test_empty_layers(small: tuple[Gpt2, Path]) -> None:
    """As a run leaves them whose sessions shared the batches."""
    gpt2, _ = small
    gpt2.execute(f"truncate {gpt2.layer_schema}.small_ln_f")
    done = gpt2.run("--select", "small_insight", check=False)
    assert done.returncode != 0
    assert "the layers of small hold nothing to look into" in done.stdout
    assert "--threads 1" in done.stdout
