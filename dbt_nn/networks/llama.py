"""The Llama family, as transformers' LlamaForCausalLM and its kin compute it.

Touvron et al. 2023, "LLaMA"; Jiang et al. 2023, "Mistral 7B"; the Qwen team 2024 and
2025, "Qwen2", "Qwen3" (models/llama/modeling_llama.py and those of mistral, qwen2 and
qwen3). Places are the positions of all sequences. Keys are stored turned.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dbt_nn.checkpoint.config import unsupported
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.tensors import same
from dbt_nn.networks import rope
from dbt_nn.networks.config import MAX_VECTOR, Config, whole
from dbt_nn.networks.graph import Layer, Reference, call, input_of, output_of
from dbt_nn.networks.modules import Alias, Matrix
from dbt_nn.networks.text import TextNetwork

QUERIES = "num_attention_heads * head_dim"
KEYS = "num_key_value_heads * head_dim"
SLIDING = "sliding_attention"


class LlamaConfig(Config):
    """The keys of LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config."""

    vocab_size: int = whole()
    hidden_size: int = whole(most=MAX_VECTOR)
    intermediate_size: int = whole(most=MAX_VECTOR)
    num_hidden_layers: int = whole()
    num_attention_heads: int = whole()
    num_key_value_heads: int = whole()
    head_dim: int = whole(most=MAX_VECTOR)
    max_position_embeddings: int = whole()
    rms_norm_eps: float = Field(
        1e-6, gt=0, lt=1, description="a number between 0 and 1 is"
    )
    hidden_act: Literal["silu", "swish"] = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = whole(None)
    layer_types: list[Literal["full_attention", "sliding_attention"]]
    rope_parameters: dict[str, Any]

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        heads, keys = self.num_attention_heads, self.num_key_value_heads
        if heads % keys:
            raise CheckpointError(
                f"config.json says num_attention_heads = {heads} and "
                f"num_key_value_heads = {keys}, but as many queries must share each "
                "key. Correct the configuration."
            )
        if heads * self.head_dim > MAX_VECTOR:
            supported = f"{MAX_VECTOR:,} for all heads are"
            raise unsupported("head_dim", self.head_dim, supported)
        least = 4 if self.rope_parameters["rope_type"] == "dynamic" else 2
        if self.head_dim % 2 or self.head_dim < least:
            supported = f"even numbers from {least} on are, as halves of a head turn"
            raise unsupported("head_dim", self.head_dim, supported)
        if len(self.layer_types) != self.num_hidden_layers:
            raise CheckpointError(
                f"config.json says num_hidden_layers = {self.num_hidden_layers}, and "
                f"layer_types has {len(self.layer_types)}. Correct the configuration."
            )
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise CheckpointError(
                f"config.json says nothing for sliding_window, and layer_types has "
                f"{SLIDING}. Use the file that belongs to the checkpoint."
            )
        return self

    def size(self, name: str) -> int:
        """A width by its name, which may be a product of two."""
        return math.prod(getattr(self, part) for part in name.split(" * "))


class Llama(TextNetwork):
    """Token ids [places] -> logits [sequences, vocab_size].

    Attributes of a kind:
        defaults: of its class in transformers, where they are not those of Llama.
        biased: whether queries, keys and values have a bias whatever the file says.
        has_head_norms: whether each head's query and key is normalized.

    """

    kind = "llama"
    config_type = LlamaConfig
    config: LlamaConfig
    width = "hidden_size"
    stem = "model"
    prefix = "model."
    convert = (
        "transformers: AutoModelForCausalLM.from_pretrained(SOURCE)"
        ".save_pretrained(FOLDER)"
    )
    stores_halves = True
    architecture: ClassVar[str] = "LlamaForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {"max_position_embeddings": 2048}
    biased: ClassVar[bool] = False
    has_head_norms: ClassVar[bool] = False

    def forward(self) -> None:
        tokens = self.begin()
        x = self.embed_tokens(tokens)  # [places, hidden_size]
        self.hooked(x, "blocks.0.hook_resid_pre")
        rotary = self.rotary_emb(tokens)  # [places, 2 * head_dim]
        for n in range(self.config.num_hidden_layers):
            with self.part(f"layers.{n}", f"layers/layers_{n:02}", f"block_{n}"):
                x = self.decoder_layer(n, x, rotary)  # [places, hidden_size]
        x = self.rms_norm("norm", x)  # [places, hidden_size]
        head, logits = self.lm_head(x, self.head())  # [sequences, vocab_size]
        self.end(x, head, logits)

    def embed_tokens(self, tokens: Layer) -> Layer:
        """[places] -> [places, hidden_size]."""
        c = self.config
        weight = Matrix(
            "embed_tokens", "embed_tokens.weight", None, (c.vocab_size, c.hidden_size)
        )
        words = self.tensor(
            "embed_tokens", weight, "Token embedding, [vocab_size, hidden_size]."
        )
        return self.layer(
            "embed_tokens",
            call("embedding", tokens, words),
            "Token embedding, [places, hidden_size].",
            reference=output_of(self.module("embed_tokens")),
        )

    def rotary_emb(self, tokens: Layer) -> Layer:
        """[places] -> [places, 2 * head_dim]: cosines and sines."""
        made = self.layer(
            "rotary_emb",
            call(
                "rotary_embedding",
                tokens,
                self.hyperparameter("rope_parameters", "jsonb"),
                self.hyperparameter("head_dim"),
            ),
            "Cosines and sines of the angles by which queries and keys turn at each "
            "place, [places, 2 * head_dim].",
            reference=output_of(self.module("rotary_emb")),
            width="2 * head_dim",
        )
        return self.sized(made, width="2 * head_dim")

    def decoder_layer(self, n: int, x: Layer, rotary: Layer) -> Layer:
        """LlamaDecoderLayer, [places, hidden_size] -> the same."""
        layer, block = f"layers.{n}", f"blocks.{n}"
        a = self.rms_norm(f"{layer}.input_layernorm", x)
        a = self.self_attn(n, a, rotary)
        x = self.linear(
            *(f"{layer}.self_attn.o_proj", a, QUERIES, "hidden_size"),
            "Attention's output added to the residual stream",
            input_of(self.module(f"{layer}.post_attention_layernorm")),
            has_bias=self.config.attention_bias,
            residual=x,
        )
        self.hooked(x, f"{block}.hook_resid_mid")
        m = self.rms_norm(f"{layer}.post_attention_layernorm", x)
        x = self.mlp(f"{layer}.mlp", block, m, x)
        return self.hooked(x, f"{block}.hook_resid_post")

    def self_attn(self, n: int, x: Layer, rotary: Layer) -> Layer:
        """LlamaAttention without its o_proj, [places, hidden_size] -> the same."""
        path, block = f"layers.{n}.self_attn", f"blocks.{n}.attn"
        bias = self.biased or self.config.attention_bias
        q = self.rotated(path, "q", x, rotary, QUERIES, has_bias=bias)
        k = self.rotated(path, "k", x, rotary, KEYS, has_bias=bias)
        v = self.linear(
            *(f"{path}.v_proj", x, "hidden_size", KEYS),
            "Values of all heads; part of the KV cache",
            output_of(self.module(f"{path}.v_proj")),
            has_bias=bias,
        )
        for hook, layer in (("rot_q", q), ("rot_k", k), ("v", v)):
            heads = "num_attention_heads" if layer is q else "num_key_value_heads"
            self.hooked(layer, f"{block}.hook_{hook}", heads=heads)
        a = self.causal_attention(
            *(path, q, k, v, input_of(self.module(f"{path}.o_proj"))),
            kv_heads="num_key_value_heads",
            window="sliding_window" if n in self.windows else "",
            width=QUERIES,
        )
        return self.hooked(a, f"{block}.hook_z", heads="num_attention_heads")

    def rotated(
        self,
        path: str,
        letter: str,
        x: Layer,
        rotary: Layer,
        n_out: str,
        *,
        has_bias: bool,
    ) -> Layer:
        """q_proj or k_proj, normed and turned, -> [places, heads * head_dim]."""
        name = f"{path}.{letter}_proj"
        weights = self.linear_weights(name, "hidden_size", n_out, has_bias=has_bias)
        reference, more = output_of(self.module(name)), {}
        if self.has_head_norms:
            norm = f"{path}.{letter}_norm"
            more["norm"] = self.rms_norm_weights(norm, "head_dim")
            more["epsilon"] = self.hyperparameter("rms_norm_eps", "float8")
            reference = output_of(self.module(norm), axes="bphc")
        about = "Queries of all heads, turned by their place"
        if letter == "k":
            about = "Keys of all heads, turned by their place; part of the KV cache"
        return self.layer(
            name,
            call("rotary_linear", x, weights, rotary, **more),
            f"{about}, [places, {n_out}].",
            reference=Reference(
                reference.module,
                axes=reference.axes,
                rotary=self.module("rotary_emb"),
            ),
            width=n_out,
        )

    def mlp(self, path: str, block: str, m: Layer, x: Layer) -> Layer:
        """LlamaMLP added to x, [places, hidden_size] -> the same."""
        has_bias = self.config.mlp_bias
        up = self.linear(
            *(f"{path}.up_proj", m, "hidden_size", "intermediate_size"),
            "What the MLP's gate lets through",
            output_of(self.module(f"{path}.up_proj")),
            has_bias=has_bias,
        )
        self.hooked(up, f"{block}.mlp.hook_pre_linear", width="intermediate_size")
        gated = self.linear(
            *(f"{path}.gate_proj", m, "hidden_size", "intermediate_size"),
            "Hidden layer of the MLP: SiLU of the gate, times up_proj",
            input_of(self.module(f"{path}.down_proj")),
            has_bias=has_bias,
            activation="'silu'",
            gated=up,
        )
        self.hooked(gated, f"{block}.mlp.hook_post", width="intermediate_size")
        return self.linear(
            *(f"{path}.down_proj", gated, "intermediate_size", "hidden_size"),
            "The MLP's output added to the residual stream",
            output_of(self.module(path.removesuffix(".mlp"))),
            has_bias=has_bias,
            residual=x,
        )

    def head(self) -> Alias | Matrix:
        """The embedding once more, unless lm_head has other weights."""
        c, embedding = self.config, self.stored.get("embed_tokens.weight")
        own = self.stored.get("lm_head.weight")
        is_tied = own is None or (embedding and same(own, embedding))
        if c.tie_word_embeddings and is_tied:
            return Alias("lm_head", "embed_tokens", "lm_head.weight")
        return Matrix("lm_head", "lm_head.weight", None, (c.vocab_size, c.hidden_size))

    @property
    def windows(self) -> list[int]:
        """The blocks whose attention has a sliding window."""
        types = self.config.layer_types
        return [n for n, kind in enumerate(types) if kind == SLIDING]

    # Files

    @classmethod
    def matches(cls, content: dict[str, Any]) -> bool:
        if "model_type" in content:
            return content["model_type"] == cls.kind
        return content.get("architectures") == [cls.architecture]

    @classmethod
    def complete(cls, content: dict[str, Any]) -> dict[str, Any]:
        """With the defaults of the class, one spelling of rope, and each layer's type.

        As in transformers, sliding_window is null where no layer has a window.
        """
        content = rope.completed({**Llama.defaults, **cls.defaults, **content})
        content = {**LlamaConfig.defaults(), **content}
        heads, width = content.get("num_attention_heads"), content.get("hidden_size")
        if content.get("num_key_value_heads") is None:
            content["num_key_value_heads"] = heads
        if content.get("head_dim") is None and type(heads) is type(width) is int:
            content["head_dim"] = width // max(heads, 1)
        if not cls.slides(content):
            content["sliding_window"] = None
        layers = content.get("num_hidden_layers")
        if content.get("layer_types") is None and type(layers) is int:
            content["layer_types"] = cls.types_of_layers(content, layers)
        return content

    @classmethod
    def slides(cls, _: dict[str, Any]) -> bool:
        """Whether the sliding window of a config.json is used."""
        return False

    @classmethod
    def types_of_layers(cls, content: dict[str, Any], layers: int) -> list[str]:
        """The type of each layer's attention, where the file does not say it."""
        slides = content["sliding_window"] is not None
        first = cls.first_sliding(content) if slides else layers
        return [SLIDING if n >= first else "full_attention" for n in range(layers)]

    @classmethod
    def first_sliding(cls, _: dict[str, Any]) -> int:
        """The first block that has the sliding window."""
        return 0

    @classmethod
    def canonical(cls, name: str) -> str | None:
        # a buffer that old checkpoints carry
        if re.fullmatch(r".*rotary_emb\.inv_freq", name):
            return None
        return name.removeprefix("model.")


class Mistral(Llama):
    """Llama with a sliding window in all layers, if there is one."""

    kind = "mistral"
    architecture = "MistralForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    }

    @classmethod
    def slides(cls, _: dict[str, Any]) -> bool:
        return True


class Qwen2(Llama):
    """Llama with biases of queries, keys and values, and windows in later layers."""

    kind = "qwen2"
    architecture = "Qwen2ForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    biased = True

    @classmethod
    def slides(cls, content: dict[str, Any]) -> bool:
        return content.get("use_sliding_window") is True

    @classmethod
    def first_sliding(cls, content: dict[str, Any]) -> int:
        first = content["max_window_layers"]
        if type(first) is not int:
            raise unsupported("max_window_layers", first, "a whole number is")
        return first


class Qwen3(Qwen2):
    """Qwen2 with norms of queries and keys in place of the biases."""

    kind = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults: ClassVar[dict[str, Any]] = Qwen2.defaults | {"head_dim": 128}
    biased = False
    has_head_norms = True
