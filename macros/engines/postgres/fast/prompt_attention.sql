{#-
    Causal attention() over prompts: all places of a text are there, and attend to those
    up to their own. The numbers are those of causal_attention(), to the bit.

    Nearly all of the work is in first_products(): up to 64 vectors of a text and a head
    are columns of one row, and one expression has their inner products with another.

    scores    The columns are keys, and every query from the first of them on meets them.
    outputs   The columns are features of a block of values, vectors over its positions,
              as attention_blocks() made them. They meet the weights of the queries after
              the block. The values after a query's last whole block are added one by one.

    With 12 heads of 64 a prompt of 256 tokens takes 0.45 of the time that each query took
    by itself: 36 microseconds a head.
-#}

{% macro prompt_attention(query, key, value, heads, blocks, kv_heads, window) -%}
{#- A query of a head takes as long as some 60,000 multiply-adds, and 350 for each
    position of the text. -#}
{{ dbt_nn.parallel_work(
    '(select count(*) * (60000 + 350 * max(x.position)) from '
    ~ dbt_nn.at_frontier(query, 'x') ~ ') * ' ~ heads
) }}
{%- set block = dbt_nn.feature_block() -%}
{%- set columns_of = dbt_nn.db_function('columns_of') -%}
{%- set vector_concat = dbt_nn.db_function('vector_concat') -%}
{# one row, or none #}
with shape as materialized (
    {{ dbt_nn.heads_shape(query, heads, kv_heads) | indent }}
),

{# the places of the band, and its queries in their order; all keys and values #}
texts as (
    select
        text.sequence_id,
        array(
            select x.position
            from {{ query }} as x
            where x.sequence_id = text.sequence_id
                and {{ dbt_nn.in_band('x') }}
            order by x.position
        ) as places,
        array(
            select {{ dbt_nn.half_scaled('x.activation', 'shape') }}
            from {{ query }} as x
            where x.sequence_id = text.sequence_id
                and {{ dbt_nn.in_band('x') }}
            order by x.position
        ) as queries,
        {{ dbt_nn.rows_of_text(key, 'activation') | indent(8) }} as keys,
        {{ dbt_nn.rows_of_text(value, 'activation') | indent(8) }} as "values",
        shape.heads,
        shape.queries_a_key,
        shape.size
    from shape
    cross join (
        select distinct x.sequence_id
        from {{ dbt_nn.at_frontier(query, 'x') }}
    ) as text
    offset 0
),

heads as (
    select
        texts.sequence_id,
        texts.places,
        texts.size,
        head.number as head,
        head.number / texts.queries_a_key as kv_head,
        {%- for name, number in {
            'queries': 'head.number',
            'keys': 'head.number / texts.queries_a_key',
            'values': 'head.number / texts.queries_a_key',
        }.items() %}
        array(
            select subvector(x.x, {{ number }} * texts.size + 1, texts.size)
            from (select unnest(texts."{{ name }}") as x) as x
        ) as "{{ name }}"{{ ',' if not loop.last }}
        {%- endfor %}
    from texts
    cross join lateral generate_series(0, texts.heads - 1) as head (number)
    offset 0
),

{# of each query over the positions up to its own #}
weights as (
    select
        heads.*,
        array(
            select
                {%- if window %} {{ dbt_nn.db_function('after_zeros') }}(
                    query.first - {{ dbt_nn.window_origin('query.first') }},
                    {{ dbt_nn.db_function('softmax_of_halves') }}(subvector(
                        query.scores,
                        query.first % {{ block }} + 1,
                        query.position - query.first + 1
                    ))
                )
                {%- else %} {{ dbt_nn.db_function('softmax_of_halves') }}(query.scores)
                {%- endif %}
            from (
                select
                    product.position,
                    {%- if window %}
                    {{ dbt_nn.window_start('product.position', window) }} as first,
                    {%- endif %}
                    {{ vector_concat }}(product.scores order by product.block) as scores
                from (
                    select
                        query.position,
                        part.block,
                        {{ dbt_nn.db_function('first_products') }}(
                            columns, query.x, query.n
                        ) as scores
                    from (
                        select
                            block,
                            heads.keys[block * {{ block }} + 1:(block + 1) * {{ block }}] as keys,
                            width_bucket(block * {{ block }} - 1, heads.places) + 1 as first
                            {%- if window %},
                            {# the last query whose window has a key of the block #}
                            width_bucket(
                                (block + 1) * {{ block }} - 2 + {{ window }}, heads.places
                            ) as last
                            {%- endif %}
                        from generate_series(
                            0, (cardinality(heads.keys) - 1) / {{ block }}
                        ) as block
                        offset 0
                    ) as part
                    cross join lateral {{ columns_of }}(part.block, part.keys) as columns
                    cross join lateral (
                        select
                            query.position,
                            query.x,
                            least(query.position + 1 - part.block * {{ block }}, {{ block }}) as n
                        {%- set range = 'part.first:part.last' if window else 'part.first:' %}
                        from unnest(
                            heads.places[{{ range }}], heads.queries[{{ range }}]
                        ) as query (position, x)
                        where columns.w0 is not null
                        offset 0
                    ) as query
                    offset 0
                ) as product
                group by product.position
            ) as query
            order by query.position
        ) as weights
    from heads
    offset 0
),

outputs as (
    select
        weights.sequence_id,
        output.position,
        weights.head,
        part.number as part,
        output.activation
    from weights
    cross join lateral (
        select
            number,
            array(
                select subvector(value.x, number * {{ block }} + 1, {{ block }})
                from (select unnest(weights."values") as x) as value
            ) as "values"
        from generate_series(0, (weights.size - 1) / {{ block }}) as number
        offset 0
    ) as part
    cross join lateral (
        {{ dbt_nn.prompt_outputs('weights', 'part', blocks, window) | indent(8) }}
    ) as output
    offset 0
)

select
    outputs.sequence_id,
    outputs.position,
    {{ vector_concat }}(
        outputs.activation order by outputs.head, outputs.part
    ) as activation
from outputs
group by outputs.sequence_id, outputs.position
{%- endmacro %}


{#-
    The sums of the values by all weights of a row of prompt_attention()'s `weights`: a
    SELECT of (position, activation).

    part   alias of an enclosing row (number p, values vector[]): of the 64 features from
           p * 64 on
-#}
{% macro prompt_outputs(weights, part, blocks, window=none) -%}
{%- set short = dbt_nn.value_blocks()[0] -%}
{%- set vector_sum = dbt_nn.db_function('vector_sum') -%}
select
    place.position,
    (
        select {{ vector_sum }}(addend.x)
        from (
            select place.sum_of_blocks as x

            union all

            select {{ dbt_nn.weighted_value(
                'newest.x', 'newest.weight', 'vector_dims(newest.x)'
            ) | indent(12) }}
            from (
                select
                    unnest({{ part }}."values"[place.start + 1:place.position + 1]) as x,
                    unnest(subvector(
                        place.weight,
                        place.start{{ ' - place.origin' if window }} + 1,
                        place.position + 1 - place.start
                    )::real[]) as weight
                where place.start <= place.position
                offset 0
            ) as newest
        ) as addend
    ) as activation
from (
    select
        place.*,
        {%- if window %}
        {{ dbt_nn.window_origin(dbt_nn.window_start('place.position', window)) }} as origin,
        {%- endif %}
        (place.position + 1) / {{ short }} * {{ short }} as start
    from unnest(
        {{ weights }}.places,
        {{ weights }}.weights,
        array(
            select {{ vector_sum }}(product.x order by product.positions desc, product.block)
            from (
                select
                    query.position,
                    part.positions,
                    part.block,
                    {{ dbt_nn.db_function('few_products') }}(columns, query.weight) as x
                from (
                    {{ dbt_nn.prompt_values(weights, part, blocks, window) | indent(20) }}
                ) as part
                cross join lateral {{ dbt_nn.db_function('columns_of') }}(part.block, part.x) as columns
                cross join lateral (
                    select
                        query.position,
                        subvector(
                            query.weight,
                            part.block * part.positions
                            {%- if window %} - {{ dbt_nn.window_origin(
                                dbt_nn.window_start('query.position', window)
                            ) }}
                            {%- endif %} + 1,
                            part.positions
                        ) as weight
                    from unnest(
                        {{ weights }}.places[part.first:part.last],
                        {{ weights }}.weights[part.first:part.last]
                    ) as query (position, weight)
                    where columns.w0 is not null
                    offset 0
                ) as query

                union all

                select unnest({{ weights }}.places), 0, 0, null
            ) as product
            group by product.position
            order by product.position
        )
    ) as place (position, weight, sum_of_blocks)
    offset 0
) as place
{%- endmacro %}


{#- The blocks of values that such weights meet: a SELECT of (positions, block, x vector[]
    of the features, first, last), `first` and `last` of the places that a block is for. -#}
{% macro prompt_values(weights, part, blocks, window=none) -%}
{%- set short, long = dbt_nn.value_blocks() -%}
{%- set rows = dbt_nn.feature_block() // dbt_nn.features_in_row() -%}
select
    kind.positions,
    block,
    array(
        select unnest(v.x)
        from (
            select v.x
            from {{ blocks }} as v
            where v.sequence_id = {{ weights }}.sequence_id
                and v.head = {{ weights }}.kv_head
                and v.positions = kind.positions
                and v.part > {{ part }}.number * {{ rows }}
                and v.part <= ({{ part }}.number + 1) * {{ rows }}
                and v.block = block.block
            order by v.part
            offset 0
        ) as v
    ) as x,
    width_bucket((block + 1) * kind.positions - 2, {{ weights }}.places) + 1 as first,
    case
        when kind.positions = {{ long }} then
        {%- if window %} width_bucket(
            (block + 1) * {{ long }} - 2 + {{ window }}, {{ weights }}.places
        )
        {%- else %} cardinality({{ weights }}.places)
        {%- endif %}
        else width_bucket(
            (block / {{ long // short }} + 1) * {{ long }} - 2, {{ weights }}.places
        )
    end as last
from (values ({{ long }}), ({{ short }})) as kind (positions)
cross join lateral generate_series(
    0, cardinality({{ weights }}.keys) / kind.positions - 1
) as block (block)
offset 0
{%- endmacro %}
