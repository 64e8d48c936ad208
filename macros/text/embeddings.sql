{#-
    A vector of each prompt: of those with a pooling_mode.

    input     relation of the last layer before the vocabulary, [places, n]
    prompts   relation made by text_prompts()
    -> (sequence_id, prompt_id, completion_id, activation), [sequences, n]

    Of the prompt's own tokens, not of generated ones. Behaves as
    sentence-transformers' Pooling: see pooling().
-#}
{% macro text_pooling(input, prompts) -%}
with places as materialized (
    select
        x.sequence_id,
        x.position,
        x.activation,
        prompts.pooling_mode
    from {{ dbt_nn.frontier() }} as frontier
    cross join {{ dbt_nn.at_place(prompts, 'prompts', 'frontier', ['sequence_id']) }}
    cross join {{ dbt_nn.at_place(
        input, 'x', 'frontier', ['sequence_id', 'position']
    ) }}
    where prompts.pooling_mode is not null
        and frontier.step = 0
),

{% for mode in dbt_nn.text_pooling_modes() -%}
places_{{ mode }} as (
    select * from places where pooling_mode = '{{ mode }}'
),

{% endfor -%}
pooled as (
    {%- for mode in dbt_nn.text_pooling_modes() %}
    {{ 'union all' if not loop.first }}
    {{ dbt_nn.pooling('places_' ~ mode, "'" ~ mode ~ "'") | indent(4) }}
    {%- endfor %}
)

select
    pooled.sequence_id,
    prompts.prompt_id,
    prompts.completion_id,
    pooled.activation
from pooled
inner join {{ prompts }} as prompts
    on pooled.sequence_id = prompts.sequence_id
{%- endmacro %}


{#- The values of the option pooling_mode. A causal network's first token has seen no
    other. -#}
{% macro text_pooling_modes() -%}
    {{ return(['mean', 'lasttoken', 'max']) }}
{%- endmacro %}


{#-
    The vectors by prompt.

    pooling   relation made by text_pooling()
    prompts   relation made by text_prompts()
    earlier   the table itself where it is there already: only what is finished
              since is given
    -> one row a prompt: (prompt_id, prompt, embedding, tokens, pooling_mode, error,
       checkpoint, finished_at)
-#}
{% macro text_embeddings(pooling, prompts, earlier=none) -%}
select
    prompts.prompt_id,
    prompts.prompt,
    pooling.activation as embedding,
    cardinality(prompts.prompt_token_ids) as tokens,
    prompts.pooling_mode,
    prompts.error,
    prompts.checkpoint,
    prompts.finished_at
from {{ prompts }} as prompts
left join {{ pooling }} as pooling
    on prompts.sequence_id = pooling.sequence_id
where (prompts.pooling_mode is not null or prompts.error is not null)
    and {{ dbt_nn.is_finished_since('prompts', earlier) }}
order by prompts.sequence_id
{%- endmacro %}
