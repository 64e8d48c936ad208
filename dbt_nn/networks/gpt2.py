"""GPT-2, as transformers' GPT2LMHeadModel (models/gpt2/modeling_gpt2.py) computes it.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Places are
the positions of all sequences.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.tensors import same
from dbt_nn.networks.config import MAX_VECTOR, Config, whole
from dbt_nn.networks.graph import (
    Layer,
    Source,
    call,
    input_of,
    output_of,
)
from dbt_nn.networks.modules import Alias, Matrix
from dbt_nn.networks.text import Block, Decoder, TextNetwork, add_insight

# The names that transformers has for every network, which the macros ask for, and
# GPT-2's own: the attribute_map of transformers' GPT2Config.
ATTRIBUTE_MAP = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


class GPT2Config(Config):
    """The keys of GPT2Config that decide what is computed."""

    vocab_size: int = whole()
    n_positions: int = whole()
    n_embd: int = whole(most=MAX_VECTOR)
    n_layer: int = whole()
    n_head: int = whole()
    n_inner: int | None = whole(None)
    layer_norm_epsilon: float = Field(
        1e-5, gt=0, lt=1, description="a number between 0 and 1 is"
    )
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh"] = "gelu_new"
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def heads_share_the_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise CheckpointError(
                f"config.json says n_embd = {self.n_embd} and n_head = "
                f"{self.n_head}, but the heads must share the width evenly. Correct "
                "the configuration."
            )
        return self

    def size(self, name: str) -> int:
        """A width by its name; the MLP's is four times the network's by default."""
        return super().size(name) or 4 * self.n_embd


class GPT2(TextNetwork):
    """Token ids [places] -> logits [sequences, vocab_size]."""

    kind = "gpt2"
    config_type = GPT2Config
    config: GPT2Config
    width = "n_embd"
    stem = "model"
    prefix = "transformer."
    convert = (
        "transformers: AutoModelForCausalLM.from_pretrained(SOURCE)"
        ".save_pretrained(FOLDER)"
    )

    def forward(self) -> None:
        tokens = self.begin()
        embedding = x = self.embedding(tokens)  # [places, n_embd]
        self.hooked(x, "blocks.0.hook_resid_pre")
        for n in range(self.config.n_layer):
            with self.part(f"h.{n}", f"layers/h_{n:02}", f"block_{n}"):
                x = self.block(f"h.{n}", x)  # [places, n_embd]
        x = self.layer_norm("ln_f", x)  # [places, n_embd]
        self.hooked(x, "ln_final.hook_normalized")
        head, logits = self.lm_head(x, self.head())  # [sequences, vocab_size]
        self.end(x, head, logits)
        add_insight(self, self.decoder(embedding, x, head))

    def embedding(self, tokens: Layer) -> Layer:
        """[places] -> [places, n_embd]."""
        c = self.config
        wte = self.tensor(
            "wte",
            Matrix("wte", "wte.weight", None, (c.vocab_size, c.n_embd)),
            "Token embedding, [vocab_size, n_embd].",
        )
        wpe = self.tensor(
            "wpe",
            Matrix("wpe", "wpe.weight", None, (c.n_positions, c.n_embd)),
            "Position embedding, [n_positions, n_embd].",
        )
        return self.layer(
            "embedding",
            call("embedding", tokens, wte, wpe),
            "Token and position embedding, [places, n_embd]: wte + wpe.",
            reference=output_of(self.module("drop")),
        )

    def block(self, h: str, x: Layer) -> Layer:
        """GPT2Block, [places, n_embd] -> the same: x += attn(x), x += mlp(x)."""
        block = h.replace("h.", "blocks.")  # TransformerLens's
        a = self.layer_norm(f"{h}.ln_1", x)
        self.hooked(a, f"{block}.ln1.hook_normalized")
        a = self.attention(f"{h}.attn", a)
        self.hooked(a, f"{block}.attn.hook_z", heads="num_attention_heads")
        x = self.conv1d(
            *(f"{h}.attn.c_proj", a, "n_embd", "n_embd"),
            "Attention's output added to the residual stream",
            input_of(self.module(f"{h}.ln_2")),
            residual=x,
        )
        self.hooked(x, f"{block}.hook_resid_mid")
        m = self.layer_norm(f"{h}.ln_2", x)
        self.hooked(m, f"{block}.ln2.hook_normalized")
        m = self.conv1d(
            *(f"{h}.mlp.c_fc", m, "n_embd", "n_inner"),
            "Hidden layer of the MLP after GELU",
            input_of(self.module(f"{h}.mlp.c_proj")),
            activation="'gelu_new'",
        )
        self.hooked(m, f"{block}.mlp.hook_post", width="intermediate_size")
        x = self.conv1d(
            *(f"{h}.mlp.c_proj", m, "n_inner", "n_embd"),
            "The MLP's output added to the residual stream",
            output_of(self.module(h)),
            residual=x,
        )
        return self.hooked(x, f"{block}.hook_resid_post")

    def decoder(self, embedding: Layer, hidden: Layer, head: Source) -> Decoder:
        """What is looked at inside."""
        blocks = [
            Block(
                *(self.ref(f"h.{n}.attn.c_attn.{letter}") for letter in "qkv"),
                heads=self.ref(f"h.{n}.attn"),
                projection=self.source(f"h.{n}.attn.c_proj"),
                middle=self.ref(f"h.{n}.attn.c_proj"),
                after=self.ref(f"h.{n}.mlp.c_proj"),
            )
            for n in range(self.config.n_layer)
        ]
        return Decoder(
            words=self.source("wte"),
            positions=self.source("wpe"),
            embedding=embedding,
            blocks=blocks,
            norm=self.source("ln_f"),
            hidden=hidden,
            head=head,
        )

    def attention(self, path: str, x: Layer) -> Layer:
        """GPT2Attention without its c_proj, [places, n_embd] -> the same."""
        q, k, v = (self.projection(path, part, x) for part in range(3))
        block = path.replace("h.", "blocks.")
        for letter, layer in (("q", q), ("k", k), ("v", v)):
            self.hooked(layer, f"{block}.hook_{letter}", heads="num_attention_heads")
        reference = input_of(self.module(f"{path}.c_proj"))
        return self.causal_attention(path, q, k, v, reference)

    def projection(self, path: str, part: int, x: Layer) -> Layer:
        """The queries, keys or values, a third of c_attn's outputs."""
        width = self.config.n_embd
        letter, word = ("qkv"[part], ("Queries", "Keys", "Values")[part])
        c_attn, own = f"{path}.c_attn", f"{path}.c_attn.{letter}"
        weights = self.tensor(
            own,
            Matrix(
                own.replace(".", "_"),
                f"{c_attn}.weight",
                f"{c_attn}.bias",
                (width, 3 * width),
                (1, 0),
                first=part * width,
                features=width,
            ),
            f"{word} of {c_attn}: weight [n_embd, n_embd], bias [n_embd].",
        )
        cache = "; part of the KV cache" if part else ""
        return self.layer(
            own,
            call("linear", x, weights),
            f"{word} of all heads, [places, n_embd]{cache}.",
            reference=output_of(f"{self.prefix}{c_attn}", part=(part, 3)),
        )

    def conv1d(self, *arguments: Any, **more: Any) -> Layer:
        """Transformers' Conv1D: a linear layer whose weight is [in, out]."""
        return self.linear(*arguments, **more, axes=(1, 0))

    def head(self) -> Alias | Matrix:
        """Wte once more, unless the checkpoint has other weights for lm_head."""
        c = self.config
        own, wte = self.stored.get("lm_head.weight"), self.stored.get("wte.weight")
        if c.tie_word_embeddings and (own is None or (wte and same(own, wte))):
            return Alias("lm_head", "wte", "lm_head.weight")
        return Matrix("lm_head", "lm_head.weight", None, (c.vocab_size, c.n_embd))

    # Files

    @classmethod
    def matches(cls, content: dict[str, Any]) -> bool:
        if "model_type" in content:
            return content["model_type"] == "gpt2"
        return content.get("architectures") == ["GPT2LMHeadModel"]

    @classmethod
    def complete(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Each hyper-parameter by both its names, and what the file leaves open.

        Where a file has both names, the canonical one holds, as in transformers.
        """
        content = {"layer_norm_epsilon": 1e-5, **content}
        for canonical, name in ATTRIBUTE_MAP.items():
            if canonical in content:
                content[name] = content[canonical]
            elif name in content:
                content[canonical] = content[name]
        # transformers' name for it in other networks
        inner, width = content.get("n_inner"), content.get("n_embd")
        content["intermediate_size"] = (
            4 * width if inner is None and type(width) is int else inner
        )
        return content

    @classmethod
    def canonical(cls, name: str) -> str | None:
        name = name.removeprefix("transformer.")
        # causal masks that old checkpoints carry as buffers
        if re.fullmatch(r"h\.[0-9]+\.attn\.(bias|masked_bias)", name):
            return None
        return name
