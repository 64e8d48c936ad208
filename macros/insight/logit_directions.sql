{#-
    What a number in the network adds to a logit, where all that comes after it is
    linear: for each place the directions of two tokens, that which came and the
    likeliest other one.

    tokens        relation made by text_insight_tokens()
    hidden        [places, n]   relation of the last layer before the vocabulary
    last          [places, n]   relation of a layer, the residual stream that the last
                                layer norm reads
    projections   [n, n] each: attention's output weights of each block, as in linear()
    norm          the last layer norm's weights, as in layer_norm()
    epsilon       of that norm, a scalar SQL expression
    head          [vocabulary, n]   the lm_head's weights
    -> one row a place with a next token, for each of the two tokens: (sequence_id,
       prompt_id, position, token_id, is_runner_up, layer, direction)

    The direction of the residual stream, where layer is NULL, is

        d = (u - mean(u)) / scale,    u = norm.weight * head[token],
        scale = sqrt(var(last) + epsilon),

    so that what is added to the stream adds its inner product with d to the logit, and
    the norm's bias adds what it adds. The scale is that of the place, as it is:
    TransformerLens's ActivationCache.apply_ln_to_stack and tokens_to_residual_directions.
    The direction of the output of block l's heads, side by side, is W^T d with the
    weights that bring them to the stream.
-#}
{% macro logit_directions(
    tokens, hidden, last, projections, norm, epsilon, head
) -%}
with hidden as (
    select
        x.sequence_id,
        x.position,
        x.activation
    from {{ tokens }} as tokens
    inner join {{ hidden }} as x using (sequence_id, position)
    where tokens.next_token_id is not null
),

logits as (
    {{ dbt_nn.lm_head('hidden', head, all_positions=true) | indent(4) }}
),

chosen as materialized (
    select
        tokens.sequence_id,
        tokens.prompt_id,
        tokens.position,
        choice.token_id,
        choice.is_runner_up
    from logits
    inner join {{ tokens }} as tokens using (sequence_id, position)
    cross join lateral (
        select tokens.next_token_id as token_id, false as is_runner_up
        union all
        (
            select best.token_id, true
            from (
                {{ dbt_nn.likeliest_tokens('logits.logits', 2) | indent(16) }}
            ) as best
            where best.token_id <> tokens.next_token_id
            order by best.x desc, best.token_id
            limit 1
        )
    ) as choice
),

scales as (
    select
        x.sequence_id,
        x.position,
        (
            select sqrt(var_pop(element.value) + {{ epsilon }})
            from {{ dbt_nn.elements_of('x.activation', 'element') }}
        ) as scale
    from {{ last }} as x
),

directions as materialized (
    select
        chosen.*,
        (
            select {{ dbt_nn.vector_of(
                '(u.value - u.mean) / scales.scale', by='u.i'
            ) }}
            from (
                select
                    weight.i,
                    weight.value::float8 * vocabulary.value as value,
                    avg(weight.value::float8 * vocabulary.value) over () as mean
                from {{ dbt_nn.elements_of('norm.weight', 'weight') }}
                inner join {{ dbt_nn.elements_of(
                    dbt_nn.embedding_row(head, 'chosen.token_id'), 'vocabulary'
                ) }} using (i)
            ) as u
        ) as direction
    from chosen
    inner join scales using (sequence_id, position)
    cross join {{ norm }} as norm
),

{# W by columns, an input of the projection each #}
columns as materialized (
    {%- for layer in range(projections | length) %}
    {{ 'union all' if not loop.first }}
    select
        {{ layer }} as layer,
        w.chunk,
        element.i,
        {{ dbt_nn.vector_of('element.value', by='w.feature') }} as weight
    from {{ projections[layer] }} as w
    cross join {{ dbt_nn.elements_of('w.weight', 'element') }}
    group by w.chunk, element.i
    {%- endfor %}
),

{# materialized, so that numbers are sorted and not vectors #}
products as materialized (
    select
        directions.sequence_id,
        directions.position,
        directions.is_runner_up,
        columns.layer,
        columns.chunk,
        columns.i,
        {{ dbt_nn.dot('columns.weight', 'directions.direction') }} as value
    from directions
    cross join columns
),

of_heads as (
    select
        products.sequence_id,
        products.position,
        products.is_runner_up,
        products.layer,
        {{ dbt_nn.vector_of('products.value', by='products.chunk, products.i') }}
        as direction
    from products
    group by
        products.sequence_id,
        products.position,
        products.is_runner_up,
        products.layer
)

select
    directions.sequence_id,
    directions.prompt_id,
    directions.position,
    directions.token_id,
    directions.is_runner_up,
    null::integer as layer,
    directions.direction
from directions
union all
select
    directions.sequence_id,
    directions.prompt_id,
    directions.position,
    directions.token_id,
    directions.is_runner_up,
    of_heads.layer,
    of_heads.direction
from directions
inner join of_heads using (sequence_id, position, is_runner_up)
{%- endmacro %}
