{#-
    There is one completion for each prompt, and it says what its tokens say: how
    many they are, what they spell, why the last one is the last.

    prompts             relation made by text_prompts()
    tokens              relation made by text_tokens()
    completion_tokens   relation made by text_sample()
    hyperparameters     relation: the checkpoint's config, for max_position_embeddings

    Fails with a row for each prompt and problem: (prompt_id, problem, value, what
    it should be).
-#}
{% test completions_match_tokens(
    model, prompts, tokens, completion_tokens, hyperparameters
) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with given as (
    select
        sequence_id,
        max(position) as last_position,
        count(*) as n
    from {{ tokens }}
    group by sequence_id
),

generated as (
    select
        sequence_id,
        count(*) as n,
        min(position) as first_position,
        max(position) as last_position,
        string_agg(piece, '' order by position) as text,
        (array_agg(finish_reason order by position desc))[1] as finish_reason,
        count(finish_reason) as reasons
    from {{ completion_tokens }}
    group by sequence_id
),

joined as (
    select
        coalesce(prompts.prompt_id, model.prompt_id) as prompt_id,
        prompts.sequence_id,
        prompts.max_new_tokens,
        cardinality(prompts.prompt_token_ids) as given,
        given.n as computed,
        given.last_position as newest,
        coalesce(generated.n, 0) as generated,
        generated.first_position,
        generated.last_position,
        case
            when prompts.error is not null then null
            when not prompts.choices ? model.completion
                then 'one of ' || prompts.choices::text
            when prompts.choices is not null then model.completion
            else coalesce(generated.text, '')
        end as text,
        case
            when prompts.error is not null then null
            when prompts.choices is not null then 'choice'
            else coalesce(generated.finish_reason, 'length')
        end as reason,
        generated.reasons,
        model.prompt_id as completed,
        model.completion,
        model.finish_reason,
        model.prompt_tokens,
        model.completion_tokens,
        model.error
    from {{ prompts }} as prompts
    full outer join {{ model }} as model on prompts.prompt_id = model.prompt_id
    left join given on prompts.sequence_id = given.sequence_id
    left join generated on prompts.sequence_id = generated.sequence_id
)

select
    joined.prompt_id,
    problem.problem,
    problem.value,
    problem.expected
from joined
cross join lateral (
    values
    ('is missing', completed is null, null, null),
    ('is of no prompt', sequence_id is null, null, null),
    (
        'prompt_tokens', prompt_tokens is distinct from given,
        prompt_tokens::text, given::text
    ),
    (
        'completion_tokens', completion_tokens is distinct from generated,
        completion_tokens::text, generated::text
    ),
    ('completion', completion is distinct from text, completion, text),
    (
        'finish_reason', finish_reason is distinct from reason,
        finish_reason, reason
    ),
    (
        'tokens with a finish_reason', generated > 0 and reasons <> 1,
        reasons::text, '1'
    ),
    (
        'position of the first token',
        generated > 0 and first_position <> given,
        first_position::text, given::text
    ),
    (
        'position of the last token',
        generated > 0 and last_position <> given + generated - 1,
        last_position::text, (given + generated - 1)::text
    ),
    ('an error and tokens', error is not null and generated > 0, error, null),
    -- The network never reads the last token of a sequence; those of earlier
    -- batches are not there.
    (
        'tokens that the network has read',
        computed <> given + greatest(generated - 1, 0)
        or newest <> computed - 1,
        computed::text, (given + greatest(generated - 1, 0))::text
    ),
    (
        'completion_tokens, more than max_new_tokens',
        generated > max_new_tokens, generated::text, max_new_tokens::text
    ),
    (
        'length: neither max_new_tokens nor the context is used up',
        reason = 'length' and generated < max_new_tokens
        and given + generated
        < {{ dbt_nn.hyperparameter(hyperparameters, 'max_position_embeddings') }},
        generated::text, max_new_tokens::text
    )
) as problem (problem, is_there, value, expected)
where problem.is_there
order by joined.prompt_id, problem.problem
{% endtest %}
