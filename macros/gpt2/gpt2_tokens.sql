{#-
    The tokens of every sequence: first those of the prompts, at step 0; the
    loop appends one a sequence at each later step.

    prompts      relation made by gpt2_prompts()
    vocabulary, merges, config   of the checkpoint
    -> (sequence_id, position, token_id, step)

    An empty prompt is read as the checkpoint's bos token, as transformers'
    generate() does. An error names the prompt that does not fit the context.
-#}
{% macro gpt2_tokens(prompts, vocabulary, merges, config) -%}
with texts as (
    select sequence_id, prompt
    from {{ prompts }}
    where prompt_token_ids is null
),

encoded as (
    {{ byte_pair_encode('texts', vocabulary, merges) }}
),

given as (
    select
        prompts.sequence_id,
        (token.i - 1)::integer as position,
        token.token_id
    from {{ prompts }} as prompts
    cross join unnest(prompts.prompt_token_ids) with ordinality as token (token_id, i)
),

beginnings as (
    select
        prompts.sequence_id,
        0 as position,
        {{ hyperparameter(config, 'bos_token_id') }} as token_id
    from {{ prompts }} as prompts
    where prompts.prompt = '' and prompts.prompt_token_ids is null
        or prompts.prompt_token_ids = '{}'
),

tokens as materialized (
    select * from encoded
    union all
    select * from given
    union all
    select * from beginnings
),

checked as materialized (
    select
        prompts.sequence_id,
        token.ids
    from {{ prompts }} as prompts
    left join lateral (
        select
            count(*) as n,
            array_agg(tokens.token_id order by tokens.position) as ids,
            max(tokens.token_id) filter (
                where tokens.token_id is null
                    or tokens.token_id < 0
                    or tokens.token_id >= {{ hyperparameter(config, 'vocab_size') }}
            ) as unknown_id
        from tokens
        where tokens.sequence_id = prompts.sequence_id
    ) as token on true
    where {{ db_function('check_input') }}(
        format('prompt_id %s: ', prompts.prompt_id) || case
            when token.n = 0
                then 'the checkpoint has no tokenizer: give prompt_token_ids instead of a prompt'
            when token.n > {{ hyperparameter(config, 'n_positions') }}
                then format(
                    'the prompt has %s tokens, more than the context of %s (n_positions): shorten it',
                    token.n, {{ hyperparameter(config, 'n_positions') }}
                )
            when token.unknown_id is not null
                then format(
                    'token id %s is not in the vocabulary of %s',
                    token.unknown_id, {{ hyperparameter(config, 'vocab_size') }}
                )
        end
    )
)

{# From the checked prompts alone: a join with no tokens would check none. #}
select
    checked.sequence_id,
    (token.i - 1)::integer as position,
    token.token_id,
    0 as step
from checked
cross join unnest(checked.ids) with ordinality as token (token_id, i)
order by checked.sequence_id, token.i
{%- endmacro %}
