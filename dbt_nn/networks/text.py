"""The two ends of every text network: from prompts to tokens, from logits to texts.

    prompts -> tokens -> frontier -> the layers -> lm_head -> completion_tokens
                                     ln_f -> token_scores -> scores   completions
                                          -> choice_tokens -> choices
                                          -> pooling -> embeddings

`begin` names what comes before the layers and gives the frontier: the places that
the network computes now. `end` names what comes after them, with the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dbt_nn.networks.graph import (
    LAYERS,
    PARAMETER_COLUMNS,
    POSITION,
    SEQUENCE_ID,
    Layer,
    Network,
    Reference,
    Source,
    Test,
    call,
    column,
    data_test,
    hook,
    output_of,
)
from dbt_nn.networks.modules import Module
from dbt_nn.networks.sequences import (
    MERGE_COLUMNS,
    TOKEN_ID,
    VOCABULARY_COLUMNS,
    SequenceNetwork,
)


class TextNetwork(SequenceNetwork):
    """A network that reads tokens and gives logits."""

    macros = "text"
    loop = ("completion_tokens", "tokens")
    tokenizer = "bpe"

    def begin(self) -> Layer:
        """Prompts and tokens; the frontier, [places]."""
        config = self.table(
            "config", "Hyper-parameters, of config.json.", PARAMETER_COLUMNS
        )
        vocabulary = self.table("vocabulary", "The tokens.", VOCABULARY_COLUMNS)
        merges = self.table("merges", "Byte pair merges.", MERGE_COLUMNS)
        with self.part("input"):
            prompts = add_prompts(self, vocabulary, merges, config)
            return add_frontier(self, add_tokens(self, prompts))

    def causal_attention(
        self,
        path: str,
        q: Layer,
        k: Layer,
        v: Layer,
        reference: Reference,
        *,
        kv_heads: str = "",
        window: str = "",
        width: str = "",
    ) -> Layer:
        """Attention to the past, with its blocks of keys and values: the KV cache.

        Args:
            path: of the module.
            q: the queries, [places, width].
            k: the keys, likewise or of fewer heads.
            v: the values, as the keys.
            reference: whose activations it is compared with.
            kv_heads: how many heads keys and values have, by its name in the
                configuration; by default as many as queries.
            window: to how many positions a query attends, likewise; by default all.
            width: how many numbers a place has, likewise; by default the network's.

        """
        width = width or self.width
        heads = self.hyperparameter("num_attention_heads")
        more = {
            name: self.hyperparameter(key)
            for name, key in (("kv_heads", kv_heads), ("window", window))
            if key
        }
        blocks = self.layer(
            f"{path}.kv_blocks",
            call("attention_blocks", k, v, heads=more.get("kv_heads", heads)),
            "Keys and values of complete blocks of positions, head by head, the "
            "values transposed: part of the KV cache.",
            reference=None,  # they repeat k and v
            place=("sequence_id", "head", "positions", "part", "block"),
            values=column(
                "x",
                "vector[]",
                f"For each position the key, {width} / heads numbers; or for "
                "each feature its values, a number a position.",
            ),
            complete=data_test(
                "complete",
                "blocks_are_keys_and_values",
                key=k,
                value=v,
                hyperparameters=self.source("config"),
            ),
        )
        return self.layer(
            path,
            call(
                *("attention", q, k, v),
                heads=heads,
                causal="true",
                blocks=blocks,
                **more,
            ),
            f"Causal self-attention, [places, {width}]: the heads side by side.",
            reference=reference,
            width=width,
            tests=[
                data_test(
                    "causal",
                    "attends_to_the_past",
                    query=q,
                    key=k,
                    value=v,
                    hyperparameters=self.source("config"),
                    **({"window": window} if window else {}),
                )
            ],
        )

    def hooked(self, layer: Layer, hook: str, **sizes: str) -> Layer:
        """Note a layer's name in TransformerLens, for its meta.

        Args:
            layer: the layer.
            hook: the HookPoint that has the same activations.
            sizes: hyper-parameters by name: `heads`, if the channels are of heads of
                head_dim, and `width`, the number of other channels if it is not
                hidden_size.

        """
        return self.sized(layer, hook=hook, **sizes)

    def sized(self, layer: Layer, **sizes: str) -> Layer:
        """Note in a layer's meta what its channels are, see hooked()."""
        self.models[layer.model][1]["config"]["meta"] |= sizes
        return layer

    def lm_head(self, x: Layer, module: Module) -> tuple[Source, Layer]:
        """[places, width] -> the weights, and logits [sequences, vocab_size]."""
        weights = self.tensor(
            "lm_head",
            module,
            f"Vocabulary projection, [vocab_size, {self.width}]: a view of the token "
            "embedding where the checkpoint ties them.",
        )
        all_positions = self.var("all_logits", "false")
        logits = self.layer(
            "lm_head",
            call("lm_head", x, weights, all_positions=all_positions),
            "Logits real[vocab_size] for each sequence's newest position; token t "
            f"has logits[t + 1]. The var {self.name}_all_logits keeps every "
            "position's.",
            reference=output_of("lm_head"),
            values=column(
                "logits", "real[]", "vocab_size numbers; token t has logits[t + 1]."
            ),
            complete=data_test(
                "complete",
                "activations_are_complete",
                places=self.ref("tokens"),
                column="logits",
                all_positions=all_positions,
            ),
        )
        return weights, logits

    def end(self, hidden: Layer, head: Source, logits: Layer) -> None:
        """Scores, the loop with its tokens, choices and completions.

        Args:
            hidden: the last layer before the logits, [places, channels].
            head: the weights that make logits of it.
            logits: [sequences, vocab_size].

        """
        with self.part("output"):
            scores = add_token_scores(self, hidden, head)
            choice_tokens = add_choice_tokens(self, hidden, head, logits)
            pooling = add_pooling(self, hidden)
            tokens = add_completion_tokens(
                self, logits, [scores, choice_tokens, pooling]
            )
            choices = add_choices(self, choice_tokens, tokens)
            add_completions(self, tokens, choices)
            add_scores(self, scores, tokens)
            add_embeddings(self, pooling, tokens)
        self.add_sessions(
            call("text_frontier", self.ref("tokens")),
            [logits, scores, choice_tokens, pooling],
        )


def add_prompts(
    net: Network, vocabulary: Source, merges: Source, config: Source
) -> Layer:
    """The prompts with their options, [sequences]."""
    default = "'dbt_nn_prompts'"
    given = f"dbt_nn.user_relation({net.var('prompts', default)})"
    interventions = f"dbt_nn.user_relation({net.var('interventions', 'none')})"
    checkpoint = net.var("checkpoint", f"'{net.name}'")
    windows = "" if net.windows is None else f", windows={net.windows}"
    arguments = f"this, {given}, {interventions}, {config}"
    return net.model(
        "prompts",
        call(
            "text_prompts",
            given,
            net.var("options", "{}"),
            checkpoint,
            vocabulary,
            merges,
            config,
            earlier="dbt_nn.earlier_rows(this)",
            interventions=interventions,
        ),
        "The prompts with their generation options, one row a sequence: those that "
        "are complete, and those that are to be. A column of the prompts relation "
        f"that is named like an option overrides the var {net.name}_options for its "
        "row.",
        {
            "materialized": "incremental",
            "unique_key": "prompt_id",
            "on_schema_change": "append_new_columns",
            "indexes": [
                {"columns": ["prompt_id"], "unique": True},
                {"columns": ["sequence_id"], "unique": True},
                {"columns": ["batch"]},
            ],
            "meta": {"network": net.name},
            "pre_hook": [
                hook(f"dbt_nn.check_checkpoint({checkpoint}, '{net.name}'{windows})"),
                hook(f"dbt_nn.check_keys(this, {given})"),
            ],
            "post_hook": [
                hook(f"dbt_nn.forget_withdrawn_prompts(this, {given})"),
                hook(f"dbt_nn.read_interventions({arguments})"),
            ],
        },
        columns=PROMPT_COLUMNS,
    )


def add_tokens(net: Network, prompts: Layer) -> Layer:
    """The tokens of all sequences, [places]."""
    return net.model(
        "tokens",
        call("text_tokens", prompts),
        "Every token of the current batch's sequences, [places]: those of the prompt "
        "at step 0, then one a sequence at each step of the loop, which appends here.",
        {
            "materialized": "table",
            "meta": {"network": net.name},
            "post_hook": [
                hook(
                    "'alter table ' ~ this ~ ' add primary key (sequence_id, position)'"
                ),
                hook("'create index on ' ~ this ~ ' (step)'"),
                hook(f"dbt_nn.resume_tokens(this, '{net.name}')"),
            ],
        },
        columns=TOKEN_COLUMNS,
    )


def add_frontier(net: Network, tokens: Layer) -> Layer:
    """The newest tokens, [places]."""
    return net.model(
        "frontier",
        call("text_frontier", tokens),
        "The places that the network computes now: the tokens of the newest step.",
        {"materialized": "view", "meta": {"network": net.name}},
        columns=TOKEN_COLUMNS,
    )


def add_token_scores(net: Network, hidden: Layer, head: Source) -> Layer:
    """The likelihood of each token of a prompt."""
    return net.model(
        "token_scores",
        call(
            "text_token_scores",
            hidden,
            head,
            net.ref("prompts"),
            net.ref("tokens"),
            net.source("vocabulary"),
        ),
        "How likely the network finds each token of a prompt after those before it, "
        "from the one forward pass that reads them: of prompts with prompt_logprobs.",
        {"materialized": "layer", "meta": net.meta() | {"history": "keep"}},
        columns=TOKEN_SCORE_COLUMNS,
    )


def add_choice_tokens(
    net: Network, hidden: Layer, head: Source, logits: Layer
) -> Layer:
    """The likelihood of each token of the choices."""
    place = ("sequence_id", "choice_number", "position")
    return net.model(
        "choice_tokens",
        call(
            "text_choice_tokens",
            hidden,
            head,
            logits,
            net.ref("prompts"),
            net.ref("tokens"),
        ),
        "How likely the network finds each token of each choice after its prompt, "
        "which is read once for all choices: of prompts with choices.",
        {"materialized": "layer", "meta": net.meta(place) | {"history": "keep"}},
        columns=CHOICE_TOKEN_COLUMNS,
    )


def add_pooling(net: Network, hidden: Layer) -> Layer:
    """Vectors of the prompts, [sequences, channels]."""
    return net.model(
        "pooling",
        call("text_pooling", hidden, net.ref("prompts")),
        f"A vector of each prompt, [sequences, {net.width}]: of prompts with a "
        "pooling_mode.",
        {
            "materialized": "layer",
            "meta": net.meta(("sequence_id",)) | {"history": "keep"},
        },
        columns=POOLING_COLUMNS,
    )


def add_completion_tokens(net: Network, logits: Layer, others: list[Layer]) -> Layer:
    """The generated tokens; the model that owns the loop."""
    return net.model(
        "completion_tokens",
        call(
            "text_sample",
            logits,
            net.ref("prompts"),
            net.ref("tokens"),
            net.source("vocabulary"),
            net.source("config"),
        ),
        "The generated tokens, one row each: the piece of text, its logprob and "
        "rank, and the five likeliest tokens. This model owns the loop.",
        {"materialized": "generation", "meta": net.meta() | {"history": "keep"}},
        note=f"after {', '.join(f'{{{{ {layer} }}}}' for layer in others)}, which its "
        "loop computes, too",
        columns=COMPLETION_TOKEN_COLUMNS,
        tests=[
            data_test(
                "logprobs",
                "logprobs_match_logits",
                logits=logits,
                prompts=net.ref("prompts"),
            ),
            net.matches_reference(
                "text",
                outcome={
                    "layer": "completion_tokens",
                    "place": [*net.place],
                    "value": "array[token_id]::real[]",
                },
            ),
        ],
    )


def add_choices(net: Network, choice_tokens: Layer, tokens: Layer) -> Layer:
    """The choices of the prompts; after the loop, which reads them."""
    prompts = net.ref("prompts")
    return net.model(
        "choices",
        call(
            "text_choices", choice_tokens, prompts, earlier="dbt_nn.earlier_rows(this)"
        ),
        "How likely the network finds each choice of a prompt, one row a choice, and "
        "which is the best: classification without generation. Of prompts with "
        "choices.",
        {
            "materialized": "incremental",
            "unique_key": "prompt_id",
            "indexes": [{"columns": ["prompt_id"]}],
            "meta": {"network": net.name},
            "post_hook": hook(f"dbt_nn.forget_earlier_choices(this, {prompts})"),
        },
        note=f"after {{{{ {tokens} }}}}, whose loop reads the choices",
        columns=CHOICE_COLUMNS,
        tests=[data_test("match_prompts", "choices_match_prompts", prompts=prompts)],
    )


def add_completions(net: Network, tokens: Layer, choices: Layer) -> None:
    """The texts, one a prompt."""
    net.model(
        "completions",
        call(
            "text_completions",
            tokens,
            net.ref("prompts"),
            choices,
            earlier="dbt_nn.earlier_rows(this)",
        ),
        "One row a prompt: the completion, why it ended (finish_reason is "
        "eos_token, stop_sequence or length; or choice, of a prompt with choices), "
        "token counts, and what made it. A row stays until its prompt, its options or "
        "the checkpoint change.",
        {
            "materialized": "incremental",
            "unique_key": "prompt_id",
            "meta": {"network": net.name},
        },
        columns=completion_columns(net.model_name("completions")),
        tests=[
            data_test(
                "match_tokens",
                "completions_match_tokens",
                prompts=net.ref("prompts"),
                tokens=net.ref("tokens"),
                completion_tokens=tokens,
                hyperparameters=net.source("config"),
            ),
            data_test(
                "are_of_their_form",
                "answers_are_of_their_form",
                prompts=net.ref("prompts"),
            ),
        ],
    )


def add_scores(net: Network, scores: Layer, tokens: Layer) -> None:
    """The scores of whole prompts; after the loop, which reads all texts."""
    net.model(
        "scores",
        call(
            "text_scores",
            scores,
            net.ref("prompts"),
            earlier="dbt_nn.earlier_rows(this)",
        ),
        "How likely the network finds each prompt: log-likelihood and perplexity. Of "
        "prompts with prompt_logprobs, which is on where max_new_tokens is 0: no "
        "generation, one forward pass.",
        {
            "materialized": "incremental",
            "unique_key": "prompt_id",
            "meta": {"network": net.name},
        },
        note=f"after {{{{ {tokens} }}}}, whose loop reads the texts",
        columns=SCORE_COLUMNS,
    )


def add_embeddings(net: Network, pooling: Layer, tokens: Layer) -> None:
    """The vectors by prompt; after the loop, which reads all texts."""
    net.model(
        "embeddings",
        call(
            "text_embeddings",
            pooling,
            net.ref("prompts"),
            earlier="dbt_nn.earlier_rows(this)",
        ),
        "A vector of each prompt, the mean of its tokens' activations or the last "
        "one's: of prompts with a pooling_mode.",
        {
            "materialized": "incremental",
            "unique_key": "prompt_id",
            "meta": {"network": net.name},
        },
        note=f"after {{{{ {tokens} }}}}, whose loop reads the texts",
        columns=EMBEDDING_COLUMNS,
    )


# --- Inside -------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """What is looked at in a block of a decoder.

    Attributes:
        query: [places, width], the queries of all heads.
        key: likewise.
        value: likewise.
        heads: what attention gives, the heads side by side.
        projection: the weights that bring it to the residual stream.
        middle: the residual stream after attention.
        after: the residual stream after the MLP.

    """

    query: Layer
    key: Layer
    value: Layer
    heads: Layer
    projection: Source
    middle: Layer
    after: Layer


@dataclass(frozen=True)
class Decoder:
    """What is looked at in a network of such blocks.

    Attributes:
        words: the embedding of tokens, [vocab_size, width].
        positions: that of positions.
        embedding: [places, width], the residual stream before the first block.
        blocks: in their order.
        norm: the weights of the last layer norm.
        hidden: what it gives, [places, width].
        head: the weights that make logits of that.

    """

    words: Source
    positions: Source
    embedding: Layer
    blocks: list[Block]
    norm: Source
    hidden: Layer
    head: Source

    @property
    def stream(self) -> list[Layer]:
        """The residual stream, before the first block and twice in each."""
        return [
            self.embedding,
            *(layer for block in self.blocks for layer in (block.middle, block.after)),
        ]


def add_insight(net: Network, decoder: Decoder) -> None:
    """What looks inside: relations that are built when they are selected."""
    with net.insight():
        tokens = add_insight_tokens(net, decoder)
        lens = add_logit_lens(net, decoder, tokens)
        add_surprise(net, tokens, lens)
        pattern = add_attention_pattern(net, decoder, tokens)
        add_head_scores(net, tokens, pattern)
        directions = add_logit_directions(net, decoder, tokens)
        attribution = add_logit_attribution(net, decoder, tokens, directions, lens)
        add_source_attribution(net, decoder, tokens, directions, pattern, attribution)
        add_layer_norms(net, tokens)


def insight_options(net: Network) -> str:
    """Jinja for the options of what looks inside."""
    return net.var("insight", "{}")


def insight_config(net: Network, *place: str) -> dict:
    """A table; its place is that of the kernels that it calls."""
    meta: dict = {"network": net.name}
    if place:
        meta |= {"place": [*place], "history": "replace"}
    return {"materialized": "table", "meta": meta}


def add_insight_tokens(net: Network, decoder: Decoder) -> Layer:
    """The places that are looked at."""
    return net.model(
        "insight_tokens",
        call(
            "text_insight_tokens",
            net.ref("tokens"),
            decoder.hidden,
            net.ref("prompts"),
            net.ref("completion_tokens"),
            net.source("vocabulary"),
            net.source("config"),
            insight_options(net),
        ),
        "The places that are looked at, one row each: the last batch's tokens as the "
        "network has read them, each with the token that came after it. The var "
        f"{net.name}_insight chooses: prompt_ids, layers, heads, top_k, places.",
        insight_config(net),
        columns=INSIGHT_TOKEN_COLUMNS,
    )


def add_logit_lens(net: Network, decoder: Decoder, tokens: Layer) -> Layer:
    """What the network would say if it ended at each point of the stream."""
    return net.model(
        "logit_lens",
        call(
            "logit_lens",
            tokens,
            listed(decoder.stream),
            decoder.norm,
            net.hyperparameter("layer_norm_epsilon", "float8"),
            decoder.head,
            net.source("vocabulary"),
            insight_options(net),
        ),
        "The logit lens: what the network would say next if it ended at this point of "
        "the residual stream, which goes through the last layer norm and the "
        "vocabulary's projection.",
        insight_config(net, "point", "sequence_id", "position"),
        columns=LOGIT_LENS_COLUMNS,
        tests=[data_test("complete", "lens_is_complete", tokens=tokens)],
    )


def add_surprise(net: Network, tokens: Layer, lens: Layer) -> Layer:
    """The bits of each token."""
    return net.model(
        "surprise",
        call("surprise", tokens, lens),
        "How surprised the network is by each token of the texts, the last generated "
        "one among them, in bits. Summed over a word or a row they are the surprise of "
        "that.",
        insight_config(net),
        columns=SURPRISE_COLUMNS,
    )


def add_attention_pattern(net: Network, decoder: Decoder, tokens: Layer) -> Layer:
    """Where each head looks."""
    return net.model(
        "attention_pattern",
        call(
            "attention_pattern",
            tokens,
            listed(block.query for block in decoder.blocks),
            listed(block.key for block in decoder.blocks),
            net.hyperparameter("num_attention_heads"),
            insight_options(net),
        ),
        "Where each attention head looks: the weights of every query on the keys up to "
        "its own position. Choose layers and heads of long sequences: there are as "
        "many rows as heads times half the tokens' square.",
        insight_config(net),
        columns=ATTENTION_PATTERN_COLUMNS,
        tests=[data_test("distributions", "patterns_are_distributions", tokens=tokens)],
    )


def add_head_scores(net: Network, tokens: Layer, pattern: Layer) -> Layer:
    """What each head does, in a few numbers."""
    return net.model(
        "head_scores",
        call("head_scores", tokens, pattern),
        "What each attention head does in a text: how spread out and how far back it "
        "looks, and whether it looks at the token before, at the same token, or at "
        "what came after the same token (induction).",
        insight_config(net),
        columns=HEAD_SCORE_COLUMNS,
    )


def add_logit_directions(net: Network, decoder: Decoder, tokens: Layer) -> Layer:
    """What a number in the network adds to a logit."""
    return net.model(
        "logit_directions",
        call(
            "logit_directions",
            tokens,
            decoder.hidden,
            decoder.stream[-1],
            listed(block.projection for block in decoder.blocks),
            decoder.norm,
            net.hyperparameter("layer_norm_epsilon", "float8"),
            decoder.head,
        ),
        "What a number in the network adds to the logit of the token that came, and to "
        "that of the likeliest other one: a vector whose inner product with an "
        "activation is that activation's part of the logit.",
        insight_config(net, "sequence_id", "position"),
        columns=LOGIT_DIRECTION_COLUMNS,
    )


def add_logit_attribution(
    net: Network, decoder: Decoder, tokens: Layer, directions: Layer, lens: Layer
) -> Layer:
    """What each part adds to the logit."""
    return net.model(
        "logit_attribution",
        call(
            "logit_attribution",
            tokens,
            directions,
            listed(decoder.stream),
            listed(block.heads for block in decoder.blocks),
            listed(block.projection for block in decoder.blocks),
            decoder.words,
            decoder.positions,
            decoder.norm,
            decoder.head,
            net.hyperparameter("num_attention_heads"),
        ),
        "Direct logit attribution: what each embedding, head, MLP and bias adds to the "
        "logit of the token that came. Over the labels of a place it adds up to the "
        "logit.",
        insight_config(net),
        columns=LOGIT_ATTRIBUTION_COLUMNS,
        tests=[data_test("adds_up", "attributions_add_up", lens=lens, tokens=tokens)],
    )


def add_source_attribution(
    net: Network,
    decoder: Decoder,
    tokens: Layer,
    directions: Layer,
    pattern: Layer,
    attribution: Layer,
) -> Layer:
    """What each token owes to those before it."""
    return net.model(
        "source_attribution",
        call(
            "source_attribution",
            tokens,
            directions,
            pattern,
            listed(block.value for block in decoder.blocks),
            net.hyperparameter("num_attention_heads"),
            insight_options(net),
        ),
        "What each token owes to those before it: what the values of a position add to "
        "the logit of the token that came, taken by the chosen heads. Over the source "
        "positions it adds up to these heads' attribution.",
        insight_config(net),
        columns=SOURCE_ATTRIBUTION_COLUMNS,
        tests=[
            data_test(
                "adds_up", "sources_add_up", attribution=attribution, pattern=pattern
            )
        ],
    )


def add_layer_norms(net: Network, tokens: Layer) -> Layer:
    """How large the activations are."""
    layers = [
        f"{{'layer': {drawn.layer}, 'part': '{part.path or drawn.layer.path}'}}"
        for part, models in net.parts
        if part.folder.startswith(LAYERS.folder)
        for drawn in models
        if drawn.layer.path in net.references and drawn.layer.path != "lm_head"
    ]
    return net.model(
        "layer_norms",
        call("layer_norms", tokens, listed(layers)),
        "How large each layer's activations are: the L2 norm at each place.",
        insight_config(net),
        columns=LAYER_NORM_COLUMNS,
    )


def listed(items: Iterable[object]) -> str:
    """Jinja of a list, an item a line, as an argument of a model's call."""
    return "[\n" + "".join(f"        {item},\n" for item in items) + "    ]"


# --- Columns ------------------------------------------------------------------

PROMPT_COLUMNS = [
    column(
        "sequence_id",
        "integer",
        "Names the sequence in every layer: 1, 2, … in the order of prompt_id, and "
        "on from there for later and changed prompts.",
    ),
    column(
        "prompt_id",
        None,
        "As in the prompts relation, and of its type: names the prompt.",
    ),
    column("prompt", "text", "The prompt's text; NULL where it is given as token ids."),
    column("prompt_token_ids", "integer[]", "The prompt's tokens."),
    column(
        "do_sample",
        "boolean",
        "Whether tokens are drawn at random; if not, each is the likeliest.",
    ),
    column("max_new_tokens", "integer", "How many tokens to generate at most."),
    column(
        "temperature", "double precision", "Divides the logits before a token is drawn."
    ),
    column("top_k", "integer", "Draw from so many of the likeliest tokens; 0 for all."),
    column(
        "top_p",
        "double precision",
        "Draw from the likeliest tokens whose probabilities add up to this.",
    ),
    column(
        "min_p",
        "double precision",
        "Draw from tokens of at least this share of the highest probability.",
    ),
    column(
        "repetition_penalty",
        "double precision",
        "Divides the logits above 0 of tokens that the sequence has, and multiplies "
        "those below; 1 for none.",
    ),
    column("seed", "bigint", "Same seed, prompt and options: same text."),
    column(
        "prompt_logprobs",
        "boolean",
        "Whether the prompt's own tokens are scored, see the scores.",
    ),
    column("stop_strings", "text[]", "Texts that end the sequence when they appear."),
    column(
        "choices",
        "jsonb",
        "Continuations of which the network is to find the likeliest, an array of "
        "texts; NULL where it is to write.",
    ),
    column("regex", "text", "A regular expression that the whole completion matches."),
    column("json_schema", "json", "A JSON schema that the completion fulfils."),
    column(
        "pooling_mode",
        "text",
        "What the prompt's embedding is: mean, lasttoken or max; NULL for none.",
    ),
    column("choice_token_ids", "jsonb", "The tokens of each, an array of arrays."),
    column(
        "form_id",
        "uuid",
        "Names the answer's form and the checkpoint; NULL where any text may come.",
    ),
    column(
        "request",
        "uuid",
        "Digest of prompt, options and checkpoint: where it changes, the prompt is "
        "completed anew.",
    ),
    column("error", "text", "Why it cannot be completed; NULL where it can."),
    column("completion_id", "uuid", "Names this attempt at it: another every time."),
    column("checkpoint", "text", "Schema of the checkpoint that completes it."),
    column("batch", "integer", "The batch that it is in; they run one by one."),
    column("finished_at", "timestamp with time zone", "When its batch was complete."),
]

TOKEN_COLUMNS = [
    SEQUENCE_ID,
    POSITION,
    TOKEN_ID,
    column(
        "step", "integer", "0 for the prompt, else the step of the loop that added it."
    ),
]

COMPLETION_TOKEN_COLUMNS = [
    SEQUENCE_ID,
    column(
        "position", "integer", "Place in the sequence, from 0 and after its prompt."
    ),
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("completion_id", "uuid", "What it belongs to, as in the prompts."),
    TOKEN_ID,
    column("token", "bytea", "Its bytes; a character may be split over tokens."),
    column(
        "piece",
        "text",
        "The text that it adds; that of a split character comes with its last token.",
    ),
    column(
        "logprob",
        "double precision",
        "Natural logarithm of its probability in the network's own distribution, "
        "before any option.",
    ),
    column("rank", "bigint", "1 + how many tokens are likelier than it."),
    column(
        "alternatives",
        "jsonb",
        "The five likeliest tokens from the likeliest down, each with token_id, "
        "token (as text) and logprob.",
    ),
    column("finish_reason", "text", "Of a sequence's last token, why it is the last."),
]


TOKEN_SCORE_COLUMNS = [
    SEQUENCE_ID,
    column("position", "integer", "The token's place in the prompt; never 0."),
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("completion_id", "uuid", "What it belongs to, as in the prompts."),
    TOKEN_ID,
    column("token", "bytea", "Its bytes."),
    column("piece", "text", "The same as text, where it is a whole character."),
    column("logprob", "double precision", "Natural logarithm of its probability."),
]
POOLING_COLUMNS = [
    SEQUENCE_ID,
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("completion_id", "uuid", "What it belongs to, as in the prompts."),
    column("activation", "vector", "The prompt's vector."),
]
EMBEDDING_COLUMNS = [
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("prompt", "text", "The prompt's text; NULL where it is given as token ids."),
    column("embedding", "vector", "The prompt's vector; NULL with an error."),
    column("tokens", "integer", "How many tokens the prompt has."),
    column("pooling_mode", "text", "What it is: mean, lasttoken or max."),
    column("error", "text", "Why there is none; NULL where there is."),
    column("checkpoint", "text", "Schema of the checkpoint that made it."),
    column("finished_at", "timestamp with time zone", "When it was made."),
]
CHOICE_TOKEN_COLUMNS = [
    SEQUENCE_ID,
    column("choice_number", "integer", "The choice, from 1."),
    column("position", "integer", "The token's place after prompt and choice so far."),
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("completion_id", "uuid", "What it belongs to, as in the prompts."),
    TOKEN_ID,
    column("logprob", "double precision", "Natural logarithm of its probability."),
]
CHOICE_COLUMNS = [
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("prompt", "text", "The prompt's text; NULL where it is given as token ids."),
    column(
        "choice_number",
        "integer",
        "The choice's place among them, from 1; NULL with an error.",
    ),
    column("choice", "text", "The choice."),
    column("tokens", "integer", "How many tokens it adds to the prompt."),
    column(
        "log_likelihood",
        "double precision",
        "Natural logarithm of the probability of its tokens after the prompt: their "
        "sum.",
    ),
    column(
        "mean_log_likelihood",
        "double precision",
        "The same a token, to compare choices of different lengths.",
    ),
    column(
        "probability",
        "double precision",
        "Softmax of the log-likelihoods of the prompt's choices: they add up to 1.",
    ),
    column(
        "is_best",
        "boolean",
        "Whether it is the likeliest of the prompt's choices; one is.",
    ),
    column("error", "text", "Why they cannot be compared; NULL where they can."),
    column("checkpoint", "text", "Schema of the checkpoint that scored it."),
    column("finished_at", "timestamp with time zone", "When it was scored."),
]
SCORE_COLUMNS = [
    column("prompt_id", None, "As in the prompts relation, and of its type."),
    column("prompt", "text", "The prompt's text; NULL where it is given as token ids."),
    column("error", "text", "Why it cannot be scored; NULL where it can."),
    column("tokens", "integer", "How many tokens are scored: all but the first."),
    column("logprob", "double precision", "Natural logarithm of their probability."),
    column(
        "perplexity", "double precision", "exp of the mean negative logprob a token."
    ),
    column("checkpoint", "text", "Schema of the checkpoint that scored it."),
    column("finished_at", "timestamp with time zone", "When it was scored."),
]


# Of what looks inside.
PROMPT_ID = column("prompt_id", None, "As in the prompts relation, and of its type.")
PIECE = column(
    "piece",
    "text",
    "The text that it adds; that of a split character comes with its last token.",
)
IS_GENERATED = column(
    "is_generated", "boolean", "Whether the network wrote it, and not the prompt."
)
BLOCK = column("layer", "integer", "The block, from 0.")
INSIGHT_TOKEN_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    TOKEN_ID,
    PIECE,
    IS_GENERATED,
    column(
        "next_token_id",
        "integer",
        "The token that came after it, read or generated; NULL if none did.",
    ),
    column("next_piece", "text", "The text that that adds."),
]
LOGIT_LENS_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    column("layer", "integer", "The block, from 0; how many there are, of final_post."),
    column(
        "label",
        "text",
        "The point of the residual stream, as TransformerLens names it: 0_pre is "
        "before block 0, 0_mid after its attention, final_post after the last block.",
    ),
    column(
        "next_token_rank",
        "bigint",
        "1 + how many tokens are likelier than the one that came; NULL if none did.",
    ),
    column(
        "next_token_logprob",
        "double precision",
        "Natural logarithm of the probability of the token that came.",
    ),
    column(
        "kl_divergence",
        "double precision",
        "Kullback-Leibler divergence of the network's own distribution from this one, "
        "in nats; 0 of final_post.",
    ),
    column("entropy", "double precision", "Of the distribution, in nats."),
    column(
        "alternatives",
        "jsonb",
        "The likeliest tokens from the likeliest down, top_k of them, each with "
        "token_id, token (as text) and logprob.",
    ),
]
HEAD = column("head", "integer", "The attention head, from 0.")
LOGIT = column(
    "logit", "double precision", "What it adds to the logit of the token that came."
)
LOGIT_DIFFERENCE = column(
    "logit_difference",
    "double precision",
    "What it adds to that logit, less what it adds to the likeliest other token's.",
)
ATTENTION_PATTERN_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    BLOCK,
    HEAD,
    column("query_position", "integer", "The place that looks, from 0."),
    column("key_position", "integer", "The place that it looks at, up to its own."),
    column(
        "attn_score",
        "double precision",
        "Inner product of query and key, divided by the root of the head's size.",
    ),
    column(
        "pattern",
        "double precision",
        "Softmax of the scores of a query: its weights add up to 1.",
    ),
]
HEAD_SCORE_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    BLOCK,
    HEAD,
    column("entropy", "double precision", "Of its weights, in nats: 0 on one token."),
    column("mean_distance", "double precision", "How far back it looks, in tokens."),
    column("first_token_share", "double precision", "Its weight on the first token."),
    column(
        "previous_token_score",
        "double precision",
        "Its weight on the token before; NULL of a single token.",
    ),
    column(
        "duplicate_token_score",
        "double precision",
        "Its weight on earlier places of the same token, where there are any; NULL if "
        "no token comes twice.",
    ),
    column(
        "induction_score",
        "double precision",
        "Its weight on what came after the same token, where there is any; NULL if no "
        "token comes twice.",
    ),
]
LOGIT_DIRECTION_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    column("token_id", "integer", "Whose logit it is, predicted at this place."),
    column(
        "is_runner_up",
        "boolean",
        "Whether it is the likeliest other token, and not the one that came.",
    ),
    column(
        "layer",
        "integer",
        "The block whose heads' outputs, side by side, it is for; NULL: the residual "
        "stream.",
    ),
    column("direction", "vector", "What a unit of each of these numbers adds."),
]
LOGIT_ATTRIBUTION_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    column(
        "label",
        "text",
        "The part, as TransformerLens names it: embed, pos_embed, L0H0, 0_mlp_out, …, "
        "attn_bias (of all blocks), ln_final_bias.",
    ),
    column("layer", "integer", "Its block, from 0; NULL of the other parts."),
    column("head", "integer", "Its head, from 0; NULL of the other parts."),
    LOGIT,
    column(
        "runner_up_logit",
        "double precision",
        "What it adds to the logit of the likeliest other token.",
    ),
    LOGIT_DIFFERENCE,
]
SOURCE_ATTRIBUTION_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    column(
        "source_position", "integer", "The place whose values are taken, up to its own."
    ),
    LOGIT,
    LOGIT_DIFFERENCE,
]
LAYER_NORM_COLUMNS = [
    column("layer_name", "text", "The layer's model."),
    column("part", "text", "The block that it is of, like h.3; else its own name."),
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    column("norm", "double precision", "The L2 norm of its activation at the place."),
]
SURPRISE_COLUMNS = [
    SEQUENCE_ID,
    PROMPT_ID,
    POSITION,
    TOKEN_ID,
    PIECE,
    IS_GENERATED,
    column(
        "bits",
        "double precision",
        "-log2 of its probability after the tokens before it; NULL of the first.",
    ),
    column(
        "word_number",
        "integer",
        "The word that it is of, from 1: what blanks divide.",
    ),
    column("word", "text", "That word, with the punctuation at its end."),
]


def completion_columns(model: str) -> list[dict]:
    """Columns of the completions, with tests."""
    return [
        column(
            "prompt_id",
            None,
            "As in the prompts relation, and of its type.",
            Test("prompt_id_unique", "unique").render(model),
            Test("prompt_id_not_null", "not_null").render(model),
        ),
        column(
            "prompt", "text", "The prompt's text; NULL where it is given as token ids."
        ),
        column(
            "completion",
            "text",
            "The text after the prompt, without an end-of-text token, or the best of "
            "its choices; NULL with an error.",
        ),
        column(
            "finish_reason",
            "text",
            "Why the text ends: eos_token (the network wrote end-of-text), "
            "stop_sequence (one of stop_strings appeared) or length (max_new_tokens "
            "or the context is used up); or choice, where the prompt has choices; NULL "
            "with an error.",
            data_test(
                "finish_reason_known",
                "accepted_values",
                values=["eos_token", "stop_sequence", "length", "choice"],
            ).render(model),
        ),
        column("error", "text", "Why there is no completion; NULL where there is."),
        column("prompt_tokens", "integer", "How many tokens the prompt has."),
        column(
            "completion_tokens",
            "integer",
            "How many tokens were generated, an end-of-text token among them.",
        ),
        column("seed", "bigint", "The seed that drew the tokens."),
        column("options", "jsonb", "All generation options that made it."),
        column("checkpoint", "text", "Schema of the checkpoint that made it."),
        column("finished_at", "timestamp with time zone", "When it was complete."),
    ]
