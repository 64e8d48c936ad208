{#-
    Self-attention with many heads over all places of an image:
    softmax(Q K^T / sqrt(d)) V.

    query, key, value   [image, h, w, n]   relations of layers
    head_size           d, scalar SQL expression; NULL for one head of size n
    -> [image, h, w, n]     the heads side by side

    Heads are small and many, so that a row for each pair of places would cost
    more than its arithmetic. Here a query meets the keys of its head as an
    array, its weights are one vector over the places, and each output feature
    is the inner product of the weights with a feature of the values,
    transposed to a vector over the places.

    The softmax subtracts the largest score only where the scores can be large:
    they are at most |q| |k|, and exp() of up to 60 fits a float32.

    Vaswani et al. 2017; behaves as diffusers' Attention without its norm and
    projections.
-#}
{% macro spatial_attention(query, key, value, head_size) -%}
    {{ return(adapter.dispatch('spatial_attention', 'dbt_nn')(
        query, key, value, head_size
    )) }}
{%- endmacro %}


{% macro postgres__spatial_attention(query, key, value, head_size) -%}
{{ parallel_work(
    '(select count(*) from ' ~ key ~ ") * pg_relation_size('" ~ query ~ "') * 5"
) }}
with heads as materialized (
    select
        image.image_id,
        head.number as head,
        image.size,
        image.size * head.number + 1 as start
    from (
        select
            image_id,
            n,
            coalesce({{ head_size }}, n) as size
        from (
            select image_id, max(vector_dims(activation)) as n
            from {{ at_frontier(query, 'x') }}
            group by image_id
        ) as images
    ) as image
    cross join generate_series(0, image.n / image.size - 1) as head (number)
),

{# vector(d)[places] for each image and head #}
keys as materialized (
    select
        heads.*,
        k.keys,
        k.longest
    from heads
    cross join lateral (
        select
            array_agg(part.x order by part.place) as keys,
            max(vector_norm(part.x)) as longest
        from (
            select
                row_number() over (order by y, x) as place,
                subvector(activation, heads.start, heads.size) as x
            from {{ key }}
            where image_id = heads.image_id
        ) as part
    ) as k
),

{# vector(places)[n] for each image; without its order the aggregate would have
   the places as they come, which depends on the plan #}
values_transposed as materialized (
    select
        feature.image_id,
        array_agg(feature.x order by feature.number) as features
    from (
        select
            ordered.image_id,
            element.number,
            array_agg(element.x order by ordered.place)::vector as x
        from (
            select
                image_id,
                row_number() over (partition by image_id order by y, x) as place,
                activation
            from {{ at_frontier(value, 'x') }}
        ) as ordered
        cross join unnest(ordered.activation::real[])
            with ordinality as element (x, number)
        group by ordered.image_id, element.number
    ) as feature
    group by feature.image_id
),

queries as materialized (
    select
        q.image_id,
        q.y,
        q.x,
        keys.head,
        keys.size,
        keys.start,
        keys.keys,
        keys.longest,
        subvector(q.activation, keys.start, keys.size)
        * {{ broadcast('1 / sqrt(keys.size)', 'keys.size') }} as activation
    from {{ at_frontier(query, 'q') }}
    inner join keys using (image_id)
    where {{ in_band('q') }}
),

weights as materialized (
    select
        shifted.image_id,
        shifted.y,
        shifted.x,
        shifted.head,
        shifted.size,
        shifted.start,
        (
            select array_agg({{ bounded_exp(
                'inner_product(score.k, shifted.activation) - shifted.shift'
            ) }})
            from (select unnest(shifted.keys) as k) as score
        )::vector as weight
    from (
        select
            queries.*,
            case
                when vector_norm(queries.activation) * queries.longest < 60 then 0
                else (
                    select max(inner_product(score.k, queries.activation))
                    from (select unnest(queries.keys) as k) as score
                )
            end as shift
        from queries
        offset 0
    ) as shifted
),

outputs as materialized (
    select
        weights.image_id,
        weights.y,
        weights.x,
        weights.head,
        (
            select array_agg(inner_product(v.x, weights.weight) / total.x)
            from (
                select inner_product(
                    weights.weight,
                    {{ broadcast('1', 'vector_dims(weights.weight)') }}
                ) as x
            ) as total
            cross join (
                select unnest(
                    values_transposed.features[
                        weights.start:weights.start + weights.size - 1
                    ]
                ) as x
            ) as v
        )::vector as activation
    from weights
    inner join values_transposed using (image_id)
)

select
    {{ place('outputs') }},
    {{ db_function('vector_concat') }}(
        outputs.activation order by outputs.head
    ) as activation
from outputs
group by {{ place('outputs') }}
{%- endmacro %}
