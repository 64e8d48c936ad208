{#-
    How likely the network finds each token of a text after those before it.

    input       relation of the last layer before the vocabulary, [places, n]
    weights     [vocabulary, n]   relation: the lm_head's
    prompts     relation made by text_prompts(): the texts; those with
                prompt_logprobs are scored
    tokens      relation made by text_tokens()
    vocabulary  the checkpoint's
    -> one row a token but the first, which nothing predicts: (sequence_id,
       position, prompt_id, completion_id, token_id, token, piece, logprob)

    Only the texts themselves are scored, no generated tokens. Behaves as
    log_softmax of the logits of transformers' GPT2LMHeadModel.
-#}
{% macro text_token_scores(input, weights, prompts, tokens, vocabulary) -%}
with predictions as (
    select
        prompts.sequence_id,
        prompts.prompt_id,
        prompts.completion_id,
        next_token.position,
        next_token.token_id,
        {{ dbt_nn.matmul('x.activation', weights, as='array') }} as logits
    from {{ dbt_nn.frontier() }} as frontier
    cross join {{ dbt_nn.at_place(prompts, 'prompts', 'frontier', ['sequence_id']) }}
    cross join lateral (
        select
            tokens.position,
            tokens.token_id
        from {{ tokens }} as tokens
        where tokens.sequence_id = frontier.sequence_id
            and tokens.position = frontier.position + 1
            and tokens.step = 0
        offset 0
    ) as next_token
    cross join {{ dbt_nn.at_place(input, 'x', 'frontier') }}
    where prompts.prompt_logprobs
    offset 0
)

select
    predictions.sequence_id,
    predictions.position,
    predictions.prompt_id,
    predictions.completion_id,
    predictions.token_id,
    vocabulary.token,
    {{ dbt_nn.db_function('decode_utf8') }}(vocabulary.token) as piece,
    predictions.logits[predictions.token_id + 1]::float8
    - {{ dbt_nn.log_sum_exp('predictions.logits') | indent(4) }} as logprob
from predictions
left join {{ vocabulary }} as vocabulary
    on predictions.token_id = vocabulary.token_id
{%- endmacro %}


{#- The logarithm of the sum of the exponentials of `logits`, real[]: what a logit is
    less by than the logarithm of its probability. A scalar subquery, float8. -#}
{% macro log_sum_exp(logits) -%}
(
    select
        largest.x
        + ln((
            select sum({{ dbt_nn.bounded_exp('score.x - largest.x') }})
            from (select unnest({{ logits }}) as x) as score
        ))
    from (
        select max(score.x)::float8 as x
        from (select unnest({{ logits }}) as x) as score
        offset 0
    ) as largest
)
{%- endmacro %}


{#-
    How likely the network finds each text.

    token_scores   relation made by text_token_scores()
    prompts        relation made by text_prompts(): the texts
    earlier        the table itself where it is there already: only what is
                   finished since is given
    -> one row a text: (prompt_id, prompt, error, tokens, logprob: the sum over
       its tokens, perplexity, checkpoint, finished_at). A text of one token has
       no logprob.

    Perplexity is exp of the mean negative logprob, the exponential of the loss
    that transformers gives for labels=input_ids.
-#}
{% macro text_scores(token_scores, prompts, earlier=none) -%}
select
    prompts.prompt_id,
    prompts.prompt,
    prompts.error,
    scores.tokens,
    scores.logprob,
    scores.perplexity,
    prompts.checkpoint,
    prompts.finished_at
from {{ prompts }} as prompts
cross join lateral (
    select
        count(*)::integer as tokens,
        sum(scores.logprob) as logprob,
        exp(-avg(scores.logprob)) as perplexity
    from {{ token_scores }} as scores
    where scores.sequence_id = prompts.sequence_id
) as scores
where (prompts.prompt_logprobs or prompts.error is not null)
    and {{ dbt_nn.is_finished_since('prompts', earlier) }}
order by prompts.sequence_id
{%- endmacro %}
