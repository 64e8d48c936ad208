"""BERT and RoBERTa, as transformers' BertModel and RobertaModel compute them.

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers"; Liu et
al. 2019, "RoBERTa" (XLM-R is wired alike). Places are the positions of all texts of a
batch: no text is padded. With the head of a ...ForSequenceClassification the network
gives classes, else a vector a text, as sentence-transformers makes it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.networks.config import MAX_VECTOR, Config, whole
from dbt_nn.networks.encoder import EncoderNetwork
from dbt_nn.networks.graph import Layer, Source, call, input_of, output_of
from dbt_nn.networks.modules import Matrix

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]
CLASSIFIER = "ForSequenceClassification"


class EncoderConfig(Config):
    """The keys that every encoder has, by transformers' names for all networks."""

    architectures: list[str] | None = None
    vocab_size: int = whole()
    hidden_size: int = whole(most=MAX_VECTOR)
    num_hidden_layers: int = whole()
    num_attention_heads: int = whole()
    intermediate_size: int = whole()
    max_position_embeddings: int = whole(512)
    pad_token_id: int | None = whole(0, least=0)
    id2label: dict[str, str] | None = Field(None, description="names of labels are")
    dense_in_features: int | None = whole(None, most=MAX_VECTOR)
    dense_out_features: int | None = whole(None, most=MAX_VECTOR)
    dense_bias: bool = True
    dense_activation: Literal["tanh", "relu", "gelu", "sigmoid"] | None = None
    pooling_mode: Literal["mean", "cls", "lasttoken", "max"] | None = None
    tokenizer: Literal["unigram"] | None = Field(None, exclude=True)
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False

    @model_validator(mode="after")
    def heads_share_the_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json says hidden_size = {self.hidden_size} and "
                f"num_attention_heads = {self.num_attention_heads}, but the heads must "
                "share the width evenly. Correct the configuration."
            )
        return self

    @property
    def is_classifier(self) -> bool:
        """Whether the network has a head that gives classes, and is to use it."""
        return self.pooling_mode is None and any(
            name.endswith(CLASSIFIER) for name in self.architectures or []
        )

    @property
    def num_labels(self) -> int:
        """How many classes; two if the file names none, as in transformers."""
        return len(self.id2label) if self.id2label else 2


class BertConfig(EncoderConfig):
    """The keys of BertConfig that decide what is computed."""

    type_vocab_size: int = whole(2)
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = Field(
        1e-12, gt=0, lt=1, description="a number between 0 and 1 is"
    )
    position_embedding_type: Literal["absolute"] = "absolute"


class Bert(EncoderNetwork):
    """Token ids [places] -> a vector [sequences, hidden_size], or logits."""

    kind = "bert"
    config_type = BertConfig
    config: BertConfig
    width = "hidden_size"
    stem = "model"
    tokenizer = "wordpiece"
    convert = "transformers: AutoModel.from_pretrained(SOURCE).save_pretrained(FOLDER)"
    base = "bert"
    blocks = "encoder.layer"
    # heads of other tasks, and BERT's pooler, which no mean of tokens reads
    unused = (
        r"(pooler|cls|lm_head|vocab_\w+|pre_classifier|classifier|qa_outputs)\..*"
        r"|embeddings\.position_ids"
    )
    architecture_stem: ClassVar[str] = "Bert"

    def forward(self) -> None:
        if self.config.is_classifier:
            self.prefix = f"{self.base}."
        tokens = self.begin()
        x = self.embeddings(tokens)  # [places, hidden_size]
        for n in range(self.config.num_hidden_layers):
            layer = f"{self.blocks}.{n}"
            with self.part(layer, f"layers/layer_{n:02}", f"layer_{n}"):
                x = self.block(layer, x)  # [places, hidden_size]
        if self.config.is_classifier:
            self.end_classes(self.classifier(x))  # [sequences, num_labels]
        else:
            self.end_embeddings(self.sentence(x))  # [sequences, hidden_size]

    def embeddings(self, tokens: Layer) -> Layer:
        """Word, position and type of each token, [places] -> [places, hidden_size]."""
        c = self.config
        x = self.layer(
            "embeddings.sum",
            call(
                "embedding",
                tokens,
                self.embedding_weights("word", c.vocab_size),
                self.embedding_weights("position", c.max_position_embeddings),
                types=self.embedding_weights("token_type", c.type_vocab_size),
                first_position=self.first_position(),
            ),
            "Word, position and type embedding of each token, added up, "
            "[places, hidden_size].",
            reference=input_of(self.module("embeddings.LayerNorm")),
        )
        return self.layer_norm("embeddings.LayerNorm", x)

    def embedding_weights(self, what: str, rows: int) -> Source:
        """torch.nn.Embedding, [rows, hidden_size]."""
        path = f"embeddings.{what}_embeddings"
        return self.tensor(
            path,
            Matrix(
                self.source(path).table,
                f"{path}.weight",
                None,
                (rows, self.config.hidden_size),
            ),
            f"Embedding of each {what.replace('_', ' ')}, [n, hidden_size].",
        )

    def block(self, layer: str, x: Layer) -> Layer:
        """BertLayer, [places, hidden_size] -> the same; a norm after each half."""
        a = self.attention(f"{layer}.attention", x)
        m = self.linear(
            *(f"{layer}.intermediate.dense", a, "hidden_size", "intermediate_size"),
            "Hidden layer of the MLP after its activation function",
            output_of(self.module(f"{layer}.intermediate")),
            activation=f"'{self.config.hidden_act}'",
        )
        y = self.linear(
            *(f"{layer}.output.dense", m, "intermediate_size", "hidden_size"),
            "The MLP's output added to what it reads",
            input_of(self.module(f"{layer}.output.LayerNorm")),
            residual=a,
        )
        return self.layer_norm(f"{layer}.output.LayerNorm", y)

    def attention(self, path: str, x: Layer) -> Layer:
        """BertAttention, [places, hidden_size] -> the same."""
        q, k, v = (
            self.linear(
                *(f"{path}.self.{part}", x, "hidden_size", "hidden_size"),
                f"{word} of all heads",
                output_of(self.module(f"{path}.self.{part}")),
            )
            for part, word in (
                ("query", "Queries"),
                ("key", "Keys"),
                ("value", "Values"),
            )
        )
        a = self.whole_attention(
            f"{path}.self", q, k, v, input_of(self.module(f"{path}.output.dense"))
        )
        a = self.linear(
            *(f"{path}.output.dense", a, "hidden_size", "hidden_size"),
            "Attention's output added to what it reads",
            input_of(self.module(f"{path}.output.LayerNorm")),
            residual=x,
        )
        return self.layer_norm(f"{path}.output.LayerNorm", a)

    def classifier(self, x: Layer) -> Layer:
        """The pooler and the classes, [places, hidden_size] -> [sequences, labels]."""
        dense = self.module("pooler.dense")
        x = self.pooling("pooler", x, "\"'cls'\"", input_of(dense, axes="bc"))
        x = self.text_linear(
            *("pooler.dense", x, "hidden_size", "hidden_size"),
            "The first token's vector after a linear layer and tanh",
            output_of(self.module("pooler.activation"), axes="bc"),
            activation="'tanh'",
        )
        return self.text_linear(
            *("classifier", x, "hidden_size", "num_labels"),
            "Logits",
            output_of("classifier", axes="bc"),
        )

    # Files

    @classmethod
    def matches(cls, content: dict[str, Any]) -> bool:
        if "model_type" in content:
            return content["model_type"] == cls.kind
        names = content.get("architectures") or [""]
        return isinstance(names, list) and str(names[0]).startswith(
            cls.architecture_stem
        )

    @classmethod
    def complete(cls, content: dict[str, Any]) -> dict[str, Any]:
        """The layer norms' epsilon by the name that the tests ask for."""
        content = {**cls.config_type.defaults(), **content}
        epsilon = content.get("layer_norm_eps")
        return {**content, "layer_norm_epsilon": epsilon}

    @classmethod
    def canonical(cls, name: str) -> str | None:
        name = name.removeprefix(f"{cls.base}.")
        # names in checkpoints of TensorFlow's time, which transformers reads as well
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(f"LayerNorm{old}"):
                name = name.removesuffix(old) + new
        return name


class RobertaConfig(BertConfig):
    """The keys of RobertaConfig and XLMRobertaConfig that decide what is computed."""

    pad_token_id: int | None = whole(1, least=0)


class Roberta(Bert):
    """BERT with a byte-level BPE, other first positions and another classifier."""

    kind = "roberta"
    config_type = RobertaConfig
    tokenizer = "bpe"
    padded_positions = True
    base = "roberta"
    architecture_stem = "Roberta"

    def classifier(self, x: Layer) -> Layer:
        """RobertaClassificationHead, [places, hidden_size] -> [sequences, labels]."""
        dense = input_of("classifier.dense", axes="bc")
        x = self.pooling("classifier.pooling", x, "\"'cls'\"", dense)
        x = self.text_linear(
            *("classifier.dense", x, "hidden_size", "hidden_size"),
            "The first token's vector after a linear layer and tanh",
            input_of("classifier.out_proj", axes="bc"),
            activation="'tanh'",
        )
        return self.text_linear(
            *("classifier.out_proj", x, "hidden_size", "num_labels"),
            "Logits",
            output_of("classifier.out_proj", axes="bc"),
        )


class XLMRoberta(Roberta):
    """RoBERTa's wiring with a vocabulary of 100 languages."""

    kind = "xlm-roberta"
    tokenizer = "unigram"
    architecture_stem = "XLMRoberta"
