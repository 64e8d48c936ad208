"""The two ends of every encoder: from texts to tokens, from activations to vectors.

    texts -> tokens -> the layers -> pooling -> embeddings
                                     logits  -> classes

A step of the loop is a batch of whole texts, of which every layer has the places.
`begin` names what comes before the layers and gives the tokens. `end_embeddings` and
`end_classes` name what comes after them, with the loop.
"""

from __future__ import annotations

from typing import ClassVar

from dbt_nn.networks.graph import (
    PARAMETER_COLUMNS,
    POSITION,
    SEQUENCE_ID,
    Call,
    Layer,
    Reference,
    Test,
    call,
    column,
    data_test,
    hook,
)
from dbt_nn.networks.sequences import (
    MERGE_COLUMNS,
    TOKEN_ID,
    VOCABULARY_COLUMNS,
    SequenceNetwork,
)

# The table beside the vocabulary by which a kind of tokenizer makes words.
WORDS = {"wordpiece": "characters", "bpe": "merges", "unigram": "replacements"}
DEFAULT_INDEX = "{'type': 'hnsw', 'distance': 'cosine'}"


class EncoderNetwork(SequenceNetwork):
    """A network that reads whole texts and gives each a vector, or classes.

    Attributes of a kind:
        padded_positions: whether positions begin after that of the padding token.

    """

    macros = "encoder"
    history = "renew"
    is_encoder = True
    loop = ("embeddings", "tokens")
    tokenizer: str
    padded_positions: ClassVar[bool] = False

    def begin(self) -> Layer:
        """Texts and their tokens, [places]."""
        self.tokenizer = self.config.tokenizer or self.tokenizer
        self.table("config", "Hyper-parameters.", PARAMETER_COLUMNS)
        is_unigram = self.tokenizer == "unigram"
        columns = VOCABULARY_COLUMNS + SCORE_COLUMNS * is_unigram
        self.table("vocabulary", "The tokens.", columns)
        self.table("merges", "Byte pair merges.", MERGE_COLUMNS)
        if is_unigram:
            self.table(
                "replacements",
                "What the tokenizer's normalizer has for a text's clusters.",
                REPLACEMENT_COLUMNS,
            )
        if self.tokenizer == "wordpiece":
            self.table(
                "characters",
                "What the tokenizer makes of each character before it looks for words.",
                CHARACTER_COLUMNS,
            )
        with self.part("input"):
            return add_tokens(self, add_texts(self))

    def first_position(self) -> str:
        """The row of the position embedding that a text's first token has, Jinja."""
        if not self.padded_positions:
            return "0"
        return f"({self.hyperparameter('pad_token_id')} ~ ' + 1')"

    def of_texts(
        self,
        path: str,
        body: Call,
        about: str,
        reference: Reference | None,
        n: str = "",
    ) -> Layer:
        """A layer with a row a text, [sequences, n]."""
        return self.layer(
            path,
            body,
            f"{about}, [sequences, {n or self.width}].",
            reference=reference,
            place=("sequence_id",),
            width=n or self.width,
            complete=data_test(
                "complete", "sequences_are_complete", tokens=self.ref("tokens")
            ),
        )

    def pooling(
        self, path: str, x: Layer, mode: str, reference: Reference | None
    ) -> Layer:
        """[places, width] -> [sequences, width], one vector a text."""
        return self.of_texts(
            path,
            call("pooling", x, mode=mode),
            "The text's vector: the mean of its tokens' activations, or one of them",
            reference,
        )

    def text_linear(
        self,
        path: str,
        x: Layer,
        n_in: str,
        n_out: str,
        about: str,
        reference: Reference | None,
        *,
        has_bias: bool = True,
        **more: object,
    ) -> Layer:
        """torch.nn.Linear of a text's vector, [sequences, n_in] -> [sequences, n_out].

        The arguments are those of `linear`.
        """
        weights = self.linear_weights(path, n_in, n_out, has_bias=has_bias)
        body = call("linear", x, weights, **more)
        return self.of_texts(path, body, about, reference, n_out)

    def whole_attention(
        self, path: str, q: Layer, k: Layer, v: Layer, reference: Reference
    ) -> Layer:
        """Attention of each text to all of it, [places, width] of each -> the same."""
        heads = self.hyperparameter("num_attention_heads")
        return self.layer(
            path,
            call("attention", q, k, v, heads=heads),
            f"Self-attention, [places, {self.width}]: the heads side by side.",
            reference=reference,
            tests=[
                data_test(
                    "whole",
                    "attends_to_the_text",
                    query=q,
                    key=k,
                    value=v,
                    hyperparameters=self.source("config"),
                )
            ],
        )

    def sentence(self, x: Layer) -> Layer:
        """Pooling and, if the checkpoint has one, sentence-transformers' Dense.

        [places, width] -> [sequences, n]
        """
        mode = self.hyperparameter("pooling_mode", "text")
        x = self.pooling("pooling", x, mode, None)
        if self.config.dense_out_features is None:
            return x
        activation = self.config.dense_activation
        return self.text_linear(
            *("dense.linear", x, "dense_in_features", "dense_out_features"),
            "The text's vector after sentence-transformers' Dense",
            None,
            has_bias=self.config.dense_bias,
            **({"activation": f"'{activation}'"} if activation else {}),
        )

    def end_embeddings(self, vectors: Layer) -> None:
        """The loop, and a vector a text: a row a chunk.

        Args:
            vectors: [sequences, n].

        """
        with self.part("output"):
            add_results(
                self,
                "embeddings",
                call(
                    "encoder_embeddings",
                    vectors,
                    self.ref("texts"),
                    self.source("config"),
                ),
                "A vector for each text of the relation that the var "
                f"{self.name}_texts names; a row a chunk where long texts are cut in "
                "chunks. A row is computed anew where its text, its options or the "
                "checkpoint change. This model owns the loop.",
                EMBEDDING_COLUMNS,
                [data_test("vectors", "vectors_are_whole", column="embedding")],
            )

    def end_classes(self, logits: Layer) -> None:
        """The loop, and the classes of each text.

        Args:
            logits: [sequences, labels].

        """
        with self.part("output"):
            add_results(
                self,
                "classes",
                call(
                    "encoder_classes",
                    logits,
                    self.ref("texts"),
                    self.source("config"),
                ),
                "The likeliest label of each text, or pair of texts, with the "
                "probabilities of all labels; the score of a network that ranks "
                "pairs. This model owns the loop.",
                CLASS_COLUMNS,
                [],
            )


def add_texts(net: EncoderNetwork) -> Layer:
    """The texts as token ids, [sequences]."""
    default = "'dbt_nn_texts'"
    given = f"dbt_nn.user_relation({net.var('texts', default)})"
    checkpoint = net.var("checkpoint", f"'{net.name}'")
    key = net.var("key", "'id'")
    return net.model(
        "texts",
        call(
            "encoder_texts",
            given,
            key,
            net.var("text", "'text'"),
            net.var("text_pair", "none"),
            net.var("options", "{}"),
            checkpoint,
            net.source("vocabulary"),
            net.source(WORDS[net.tokenizer]),
            net.source("config"),
            tokenizer=f"'{net.tokenizer}'",
            first_position=net.first_position(),
            earlier="dbt_nn.earlier_rows(this)",
        ),
        "The texts as token ids, one row a sequence: a text, or a chunk of one. Those "
        "that are embedded, and those that are to be.",
        {
            "materialized": "incremental",
            "unique_key": ["key", "chunk"],
            "indexes": [
                {"columns": ["key", "chunk"], "unique": True},
                {"columns": ["sequence_id"], "unique": True},
                {"columns": ["batch"]},
            ],
            "meta": {
                "network": net.name,
                **({"padded_positions": True} if net.padded_positions else {}),
            },
            "pre_hook": [
                hook(f"dbt_nn.check_checkpoint({checkpoint}, '{net.name}')"),
                hook(
                    f"dbt_nn.check_keys(this, {given}, {key}, 'key', "
                    f"[{net.var('text', repr('text'))}, "
                    f"{net.var('text_pair', 'none')}])"
                ),
            ],
            "post_hook": hook(
                f"dbt_nn.forget_withdrawn_texts(this, {given}, {key}, "
                f"{net.var('withdrawn', repr('delete'))})"
            ),
        },
        columns=TEXT_COLUMNS,
    )


def add_tokens(net: EncoderNetwork, texts: Layer) -> Layer:
    """The tokens of the current batch, [places]."""
    return net.model(
        "tokens",
        call("encoder_tokens", texts, earlier="this"),
        "Every token of the current batch's texts, [places]; each step of the loop "
        "puts the next batch's here.",
        {
            "materialized": "table",
            "meta": {"network": net.name},
            "post_hook": hook(
                "'alter table ' ~ this ~ ' add primary key (sequence_id, position)'"
            ),
        },
        columns=TOKEN_COLUMNS,
    )


def add_results(
    net: EncoderNetwork,
    path: str,
    body: Call,
    description: str,
    columns: list[dict],
    tests: list[Test],
) -> None:
    """What the network gives of each text; the model that owns the loop.

    Its body reads the last layer first.
    """
    net.loop = (path, "tokens")
    outcome = {
        "layer": path,
        "place": ["key::integer", "chunk"],
        "value": "embedding::real[]" if path == "embeddings" else "logits",
        "feeds_back": False,
    }
    model = net.model_name(path)
    index = f"dbt_nn.index_embeddings(this, {net.var('index', DEFAULT_INDEX)})"
    after = {"post_hook": hook(index)} if path == "embeddings" else {}
    columns = [
        column(
            "key",
            None,
            "As in the relation of texts, and of its type.",
            Test("key_not_null", "not_null").render(model),
        ),
        *columns,
    ]
    net.model(
        path,
        body,
        description,
        {
            "materialized": "generation",
            "meta": net.meta(("key", "chunk")) | {"history": "keep"},
            **after,
        },
        columns=columns,
        tests=[*tests, net.matches_reference("text", outcome=outcome)],
    )
    net.add_sessions(call("encoder_tokens", net.ref("texts")), body.inputs[:1])


# --- Columns ------------------------------------------------------------------

SCORE_COLUMNS = [
    column("score", "double precision", "A piece's log-probability, or NULL."),
]
REPLACEMENT_COLUMNS = [
    column("source", "text", "A character, or what a grapheme cluster begins with."),
    column("replacement", "text", "What normalized texts have for it."),
]
CHARACTER_COLUMNS = [
    column("first_codepoint", "integer", "The first character of a range."),
    column("last_codepoint", "integer", "The last one."),
    column("replacement", "text", "What stands for the character; NULL for itself."),
    column("isolated", "boolean", "Whether it is a word of its own."),
]
KEY = column("key", None, "As in the relation of texts, and of its type.")
CHUNK = column(
    "chunk", "integer", "0, 1, …: the piece of a long text; 0 where none is cut."
)
TEXT_COLUMNS = [
    column(
        "sequence_id",
        "integer",
        "Names the sequence in every layer: 1, 2, … in the order of the keys, and on "
        "from there for later and changed texts.",
    ),
    KEY,
    CHUNK,
    column("token_ids", "integer[]", "The tokens, special ones among them."),
    column(
        "first_tokens",
        "integer",
        "How many of them are of the first text of a pair; all where there is none.",
    ),
    column("truncated", "boolean", "Whether the text is longer and was cut."),
    column(
        "request",
        "uuid",
        "Digest of text, options and checkpoint: where it changes, the text is "
        "embedded anew.",
    ),
    column("error", "text", "Why there is no vector; NULL where there is."),
    column("checkpoint", "text", "Schema of the checkpoint that embeds it."),
    column("batch", "integer", "The batch that it is in; they run one by one."),
    column("finished_at", "timestamp with time zone", "When its batch was complete."),
]
TOKEN_COLUMNS = [
    SEQUENCE_ID,
    POSITION,
    TOKEN_ID,
    column("type_id", "integer", "0, or 1 for the second text of a pair."),
]
RESULT_COLUMNS = [
    CHUNK,
    column("tokens", "integer", "How many tokens it has, special ones among them."),
    column("truncated", "boolean", "Whether the text is longer and was cut."),
    column("error", "text", "Why there is no result; NULL where there is."),
    column("checkpoint", "text", "Schema of the checkpoint that made it."),
]
EMBEDDING_COLUMNS = [
    column("embedding", "vector", "The text's vector; NULL with an error."),
    *RESULT_COLUMNS,
]
CLASS_COLUMNS = [
    column(
        "label",
        "text",
        "The likeliest label; NULL with an error, or where there is one score.",
    ),
    column(
        "score",
        "double precision",
        "The label's probability, or the only label's score.",
    ),
    column("probabilities", "jsonb", "The probability of each label, by its name."),
    column("logits", "real[]", "What the network gives, a number a label."),
    *RESULT_COLUMNS,
]
