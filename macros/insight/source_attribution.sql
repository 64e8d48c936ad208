{#-
    What each token owes to those before it: what the values of a position, taken by the
    heads of the chosen layers, add to the logit of the token that came.

    tokens       relation made by text_insight_tokens()
    directions   relation made by logit_directions()
    pattern      relation made by attention_pattern(), of the chosen layers and heads
    values       [places, n] each: relations of layers, the values of each block
    heads        scalar SQL expression, how many heads a block has
    options      see insight_options()
    -> one row a place with a next token and a position up to it: (sequence_id,
       prompt_id, position, source_position, logit, logit_difference)

    logit is the sum over heads of pattern * (v . d), v being the head's values at
    source_position and d its slice of the direction. Over the source positions it adds
    up to what the heads add: their rows of logit_attribution(). In TransformerLens it is
    hook_pattern times hook_v, through W_O, with logit_attrs; the OV circuit of Elhage
    et al. 2021, "A Mathematical Framework for Transformer Circuits".
-#}
{% macro source_attribution(tokens, directions, pattern, values, heads, options) -%}
    {%- set options = dbt_nn.insight_options(options) -%}
with places as (
    {%- for layer in dbt_nn.looked_at_layers(values | length, options) %}
    {{ 'union all' if not loop.first }}
    select
        {{ layer }} as layer,
        v.sequence_id,
        v.position,
        v.activation as value
    from {{ tokens }} as tokens
    inner join {{ values[layer] }} as v using (sequence_id, position)
    {%- endfor %}
),

source_values as materialized (
    select
        places.layer,
        places.sequence_id,
        places.position,
        head.number as head,
        {{ dbt_nn.slice('places.value', 'head.size * head.number', 'head.size') }} as value
    from places
    cross join lateral (
        select
            number,
            vector_dims(places.value) / {{ heads }} as size
        from generate_series(0, {{ heads }} - 1) as number
    ) as head
),

directions as materialized (
    select
        came.layer,
        came.sequence_id,
        came.prompt_id,
        came.position,
        head.number as head,
        {{ dbt_nn.slice('came.direction', 'head.size * head.number', 'head.size') }} as came,
        {{ dbt_nn.slice('other.direction', 'head.size * head.number', 'head.size') }} as other
    from {{ directions }} as came
    inner join {{ directions }} as other using (layer, sequence_id, position)
    cross join lateral (
        select
            number,
            vector_dims(came.direction) / {{ heads }} as size
        from generate_series(0, {{ heads }} - 1) as number
    ) as head
    where not came.is_runner_up
        and other.is_runner_up
),

products as (
    select
        directions.sequence_id,
        directions.prompt_id,
        directions.position,
        pattern.key_position as source_position,
        pattern.pattern * {{ dbt_nn.dot('v.value', 'directions.came') }} as logit,
        pattern.pattern * {{ dbt_nn.dot('v.value', 'directions.other') }} as other_logit
    from {{ pattern }} as pattern
    inner join directions
        on pattern.layer = directions.layer
        and pattern.head = directions.head
        and pattern.sequence_id = directions.sequence_id
        and pattern.query_position = directions.position
    inner join source_values as v
        on pattern.layer = v.layer
        and pattern.head = v.head
        and pattern.sequence_id = v.sequence_id
        and pattern.key_position = v.position
)

select
    products.sequence_id,
    products.prompt_id,
    products.position,
    products.source_position,
    sum(products.logit) as logit,
    sum(products.logit - products.other_logit) as logit_difference
from products
group by
    products.sequence_id,
    products.prompt_id,
    products.position,
    products.source_position
order by products.sequence_id, products.position, products.source_position
{%- endmacro %}
