{#-
    attention() over whole texts, each of which attends to all of its own tokens. The
    frontier has a text's places all or none.

    The plain form has a row for each pair of tokens and each of their features. Here
    nearly all of the work is in few_products(): up to 64 vectors of a text and a head
    are columns of one row, and one expression has their inner products with another.

    scores    The columns are keys, and every query meets them.
    weights   scaled_exp() of half the scores, of some queries together. A query's part
              of it, normalized to the length 1, has the weights' square roots: the
              softmax of s is (exp(s / 2) / |exp(s / 2)|)^2. Where scores are too far
              apart for that: softmax() of inner products one by one.
    outputs   The columns are features of the values, a vector over the text's tokens.
              Each is there as the products of a unit vector with values as columns.

    With 12 heads of 32 a token takes 70 microseconds in texts of 30 tokens and 290 in
    texts of 256; the plain form 4,000 and 35,000. Two thirds of it are the products, 30
    nanoseconds each with what it takes to collect them in vectors.
-#}

{% macro whole_attention(query, key, value, heads, head_size) -%}
{#- A query of a head takes as long as some 35,000 multiply-adds, and 700 for each token
    of its text. -#}
{{ dbt_nn.parallel_work(
    '(select sum(text.n * (35000 + 700 * text.n)) from '
    ~ '(select count(*) as n from ' ~ dbt_nn.at_frontier(query, 'x')
    ~ ' group by x.sequence_id) as text)'
    ~ ' * (select ' ~ dbt_nn.head_count('x.activation', heads, head_size)
    ~ ' from ' ~ query ~ ' as x limit 1)'
) }}
{%- set block = dbt_nn.feature_block() -%}
{%- set columns_of = dbt_nn.db_function('columns_of') -%}
{%- set few_products = dbt_nn.db_function('few_products') -%}
{%- set vector_concat = dbt_nn.db_function('vector_concat') -%}
{# one row, or none #}
with shape as materialized (
    select
        shape.heads,
        shape.size,
        0.5 / sqrt(shape.size) as scale,
        {{ dbt_nn.scaled_exp_constants('0.5 / sqrt(shape.size)') }} as constants,
        array(
            select array(
                select (i = feature)::integer from generate_series(1, shape.size) as i
            )::vector
            from generate_series(1, shape.size) as feature
        ) as units
    from (
        select
            first.heads,
            first.n / first.heads as size
        from (
            select
                vector_dims(x.activation) as n,
                {{ dbt_nn.head_count('x.activation', heads, head_size) }} as heads
            from {{ query }} as x
            limit 1
        ) as first
        offset 0
    ) as shape
),

texts as (
    select
        text.sequence_id,
        {{ dbt_nn.rows_of_text(query, 'position') | indent(8) }} as positions,
        {{ dbt_nn.rows_of_text(query, 'activation') | indent(8) }} as queries,
        {{ dbt_nn.rows_of_text(key, 'activation') | indent(8) }} as keys,
        {{ dbt_nn.rows_of_text(value, 'activation') | indent(8) }} as "values"
    from (
        select distinct x.sequence_id
        from {{ dbt_nn.at_frontier(query, 'x') }}
        where {{ dbt_nn.in_band('x', ['sequence_id']) }}
    ) as text
    offset 0
),

{# Of n tokens `width` at a time are columns, and `together` queries meet them before
   the next step. What depends on columns follows from them, so that it is computed for
   each, and not they for each of it. #}
blocks as (
    select
        text.*,
        ceil(text.n / text.blocks::float8)::integer as width,
        {{ dbt_nn.scaled_exp_length() }} / ceil(text.n / text.blocks::float8)::integer as together
    from (
        select
            texts.*,
            cardinality(texts.keys) as n,
            (cardinality(texts.keys) + {{ block - 1 }}) / {{ block }} as blocks
        from texts
    ) as text
    offset 0
),

heads as (
    select
        blocks.sequence_id,
        blocks.positions,
        blocks.n,
        blocks.blocks,
        blocks.width,
        blocks.together,
        shape.size,
        head.number as head,
        part.*
    from shape
    cross join blocks
    cross join lateral (
        select generate_series(0, shape.heads - 1) as number
        where blocks.keys is not null
        offset 0
    ) as head
    cross join lateral (
        select
            array_agg(subvector(x.query, head.number * shape.size + 1, shape.size)) as queries,
            array_agg(subvector(x.key, head.number * shape.size + 1, shape.size)) as keys,
            array_agg(subvector(x.value, head.number * shape.size + 1, shape.size)) as "values"
        from (
            select
                unnest(blocks.queries) as query,
                unnest(blocks.keys) as key,
                unnest(blocks."values") as value
        ) as x
    ) as part
    offset 0
),

{# exp() of half the scores of each block of keys with `together` queries, query by
   query; NULL where they are too large. Each feature of each block of values. #}
products as (
    select
        heads.*,
        array(
            select {{ dbt_nn.db_function('scaled_exp') }}(
                (
                    select {{ vector_concat }}({{ few_products }}(columns, query.x))
                    from {{ columns_of }}(part.block, part.keys) as columns
                    cross join lateral (
                        select unnest(part.queries) as x
                        where columns.w0 is not null
                        offset 0
                    ) as query
                ),
                (select scale from shape),
                (select constants from shape)
            )
            from (
                select
                    block,
                    heads.keys[block * heads.width + 1:(block + 1) * heads.width] as keys,
                    heads.queries[
                        number * heads.together + 1:(number + 1) * heads.together
                    ] as queries
                from generate_series(0, heads.blocks - 1) as block
                cross join generate_series(0, (heads.n - 1) / heads.together) as number
                order by block, number
                offset 0
            ) as part
        ) as exponentials,
        array(
            select {{ few_products }}(columns, unit.x)
            from (
                select
                    block,
                    heads."values"[block * heads.width + 1:(block + 1) * heads.width] as x
                from generate_series(0, heads.blocks - 1) as block
                order by block
                offset 0
            ) as part
            cross join lateral {{ columns_of }}(part.block, part.x) as columns
            cross join lateral (
                select unnest((select units from shape)) as x
                where columns.w0 is not null
                offset 0
            ) as unit
        ) as features
    from heads
    offset 0
),

outputs as (
    select
        products.sequence_id,
        products.positions[query.number + 1] as position,
        products.head,
        columns.chunk as part,
        {{ few_products }}(columns, query.weights) as activation
    from products
    cross join lateral (
        select
            part,
            features.x[part * {{ block }} + 1:(part + 1) * {{ block }}] as features
        from (
            select case
                when products.blocks = 1 then products.features
                else array(
                    select (
                        select {{ vector_concat }}(
                            products.features[block * products.size + feature]
                            order by block
                        )
                        from generate_series(0, products.blocks - 1) as block
                    )
                    from generate_series(1, products.size) as feature
                    order by feature
                )
            end as x
        ) as features
        cross join generate_series(0, (products.size - 1) / {{ block }}) as part
        offset 0
    ) as part
    cross join lateral {{ columns_of }}(part.part, part.features) as columns
    cross join lateral (
        {{ dbt_nn.attention_weights('products') | indent(8) }}
        where columns.w0 is not null
        offset 0
    ) as query
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


{#- A column at the places of a row of whole_attention()'s `texts`, in order: an array. -#}
{% macro rows_of_text(input, column) -%}
array(
    select x.{{ column }}
    from {{ input }} as x
    where x.sequence_id = text.sequence_id
    order by x.position
)
{%- endmacro %}


{#-
    The weights of each query of a row of whole_attention()'s `products`: a SELECT of
    (number, weights vector(n)), to which a WHERE may be added.
-#}
{% macro attention_weights(products) -%}
select
    root.number,
    coalesce(
        root.x * root.x,
        (
            select {{ dbt_nn.softmax('score.x') | indent(12) }}
            from (
                select array_agg(
                    inner_product(key.x, {{ products }}.queries[root.number + 1])
                    / sqrt({{ products }}.size)
                ) as x
                from (select unnest({{ products }}.keys) as x) as key
            ) as score
        )
    ) as weights
from (
    select
        query.number,
        l2_normalize(case
            when {{ products }}.blocks = 1 then subvector(
                {{ products }}.exponentials[query.number / {{ products }}.together + 1],
                query.number % {{ products }}.together * {{ products }}.n + 1,
                {{ products }}.n
            )
            else (
                select
                    case when count(part.x) = {{ products }}.blocks
                        then {{ dbt_nn.db_function('vector_concat') }}(part.x order by part.block)
                    end
                from (
                    select
                        block,
                        subvector(
                            {{ products }}.exponentials[
                                block * (({{ products }}.n - 1) / {{ products }}.together + 1)
                                + query.number / {{ products }}.together + 1
                            ],
                            query.number % {{ products }}.together * width.n + 1,
                            width.n
                        ) as x
                    from generate_series(0, {{ products }}.blocks - 1) as block
                    cross join lateral (
                        select least(
                            {{ products }}.width, {{ products }}.n - block * {{ products }}.width
                        ) as n
                    ) as width
                ) as part
            )
        end) as x
    from (
        select generate_series(0, {{ products }}.n - 1) as number
    ) as query
    offset 0
) as root
{%- endmacro %}
