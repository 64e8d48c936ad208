{#-
    The tokens of every sequence of the current batch: first those of the
    prompts, at step 0; the loop appends one a sequence at each later step.

    prompts   relation made by text_prompts()
    batch     expression: of which batch; none: the first that is not finished, or the
              last one of all. Of none where sessions share several: each takes one, see
              session.sql.
    -> (sequence_id, position, token_id, step)
-#}
{% macro text_tokens(prompts, batch=none) -%}
select
    prompts.sequence_id,
    (token.i - 1)::integer as position,
    token.token_id,
    0 as step
from {{ prompts }} as prompts
cross join unnest(prompts.prompt_token_ids) with ordinality as token (token_id, i)
where prompts.error is null
    and prompts.batch = {{ batch or dbt_nn.first_batch(prompts) }}
order by prompts.sequence_id, token.i
{%- endmacro %}


{#-
    The tokens that a run which was stopped has generated, and the network read:
    all but the newest of each sequence, which the next step begins with.

    prompts   relation made by text_prompts()
    tokens    relation made by text_tokens()
    samples   relation made by text_sample()
    -> as text_tokens()
-#}
{% macro text_tokens_read(prompts, tokens, samples) -%}
select
    samples.sequence_id,
    samples.position,
    samples.token_id,
    samples.position - cardinality(prompts.prompt_token_ids) + 1 as step
from {{ tokens }} as tokens
inner join {{ prompts }} as prompts
    on tokens.sequence_id = prompts.sequence_id
inner join {{ samples }} as samples
    on prompts.sequence_id = samples.sequence_id
    and prompts.completion_id = samples.completion_id
where tokens.position = 0 and exists (
    select from {{ samples }} as later
    where later.sequence_id = samples.sequence_id
        and later.position = samples.position + 1
)
{%- endmacro %}


{#- A statement that adds those tokens, if there was a run before. -#}
{% macro resume_tokens(tokens, network) -%}
    {%- set samples = dbt_nn.network_relation(network ~ '_completion_tokens') -%}
    do $body$
    begin
        if to_regclass({{ dbt_nn.literal(samples) }}) is not null then
            insert into {{ tokens }} (sequence_id, position, token_id, step)
            {{ dbt_nn.text_tokens_read(
                dbt_nn.network_relation(network ~ '_prompts'), tokens, samples
            ) }};
        end if;
    end
    $body$
{%- endmacro %}
