"""DistilBERT, as transformers' DistilBertModel computes it.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT": half of BERT's layers, no
token types. Places are the positions of all texts of a batch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dbt_nn.networks.bert import Activation, Bert, EncoderConfig
from dbt_nn.networks.graph import Layer, call, input_of, output_of

# The names that transformers has for every network, and DistilBERT's own: the
# attribute_map of its DistilBertConfig, and hidden_dim.
ATTRIBUTE_MAP = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


class DistilBertConfig(EncoderConfig):
    """The keys of DistilBertConfig that decide what is computed."""

    hidden_act: Activation = "gelu"
    layer_norm_eps: Literal[1e-12] = Field(1e-12, exclude=True)


class DistilBert(Bert):
    """Token ids [places] -> a vector [sequences, hidden_size], or logits."""

    kind = "distilbert"
    config_type = DistilBertConfig
    config: DistilBertConfig
    base = "distilbert"
    architecture_stem = "DistilBert"
    blocks = "transformer.layer"

    def embeddings(self, tokens: Layer) -> Layer:
        """Word and position of each token, [places] -> [places, hidden_size]."""
        c = self.config
        x = self.layer(
            "embeddings.sum",
            call(
                "embedding",
                tokens,
                self.embedding_weights("word", c.vocab_size),
                self.embedding_weights("position", c.max_position_embeddings),
            ),
            "Word and position embedding of each token, added up, "
            "[places, hidden_size].",
            reference=input_of(self.module("embeddings.LayerNorm")),
        )
        return self.layer_norm("embeddings.LayerNorm", x)

    def block(self, layer: str, x: Layer) -> Layer:
        """TransformerBlock, [places, hidden_size] -> the same."""
        q, k, v = (
            self.linear(
                *(f"{layer}.attention.{part}_lin", x, "hidden_size", "hidden_size"),
                f"{word} of all heads",
                output_of(self.module(f"{layer}.attention.{part}_lin")),
            )
            for part, word in (("q", "Queries"), ("k", "Keys"), ("v", "Values"))
        )
        out = f"{layer}.attention.out_lin"
        a = self.whole_attention(
            f"{layer}.attention", q, k, v, input_of(self.module(out))
        )
        a = self.linear(
            *(out, a, "hidden_size", "hidden_size"),
            "Attention's output added to what it reads",
            input_of(self.module(f"{layer}.sa_layer_norm")),
            residual=x,
        )
        a = self.layer_norm(f"{layer}.sa_layer_norm", a)
        m = self.linear(
            *(f"{layer}.ffn.lin1", a, "hidden_size", "intermediate_size"),
            "Hidden layer of the MLP after its activation function",
            input_of(self.module(f"{layer}.ffn.lin2")),
            activation=f"'{self.config.hidden_act}'",
        )
        y = self.linear(
            *(f"{layer}.ffn.lin2", m, "intermediate_size", "hidden_size"),
            "The MLP's output added to what it reads",
            input_of(self.module(f"{layer}.output_layer_norm")),
            residual=a,
        )
        return self.layer_norm(f"{layer}.output_layer_norm", y)

    def classifier(self, x: Layer) -> Layer:
        """The classes, [places, hidden_size] -> [sequences, labels]."""
        x = self.pooling(
            "pooler", x, "\"'cls'\"", input_of("pre_classifier", axes="bc")
        )
        x = self.text_linear(
            *("pre_classifier", x, "hidden_size", "hidden_size"),
            "The first token's vector after a linear layer and ReLU",
            input_of("classifier", axes="bc"),
            activation="'relu'",
        )
        return self.text_linear(
            *("classifier", x, "hidden_size", "num_labels"),
            "Logits",
            output_of("classifier", axes="bc"),
        )

    # Files

    @classmethod
    def complete(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Each hyper-parameter by both its names."""
        content = {**content}
        for canonical, name in ATTRIBUTE_MAP.items():
            if canonical in content:
                content[name] = content[canonical]
            elif name in content:
                content[canonical] = content[name]
        return super().complete({**content, "layer_norm_eps": 1e-12})
