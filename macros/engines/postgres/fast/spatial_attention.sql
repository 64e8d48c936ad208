{#-
    attention() over all places of an image, with products of vectors over the places.

    Heads are small and many, so that a row for each pair of places would cost
    far more than its arithmetic. Here everything that a query does is a few
    operations on vectors over the places:

    scores    The query's inner products with all keys are one product and a
              sum of d slices. The query is repeated to d * stride numbers, and
              the keys are laid skewed: at number j * stride + p stands feature
              (j + p) mod d of the key at p. As stride is 1 (mod d), that is the
              feature which the repeated query has there.
    weights   exp() of the whole vector; |q| |k| bounds the scores. Where they
              may be too large for that, or the product for a vector: softmax()
              of inner products one by one.
    outputs   Each feature is the inner product of the weights with a feature of
              the values, transposed to a vector over the places.
-#}

{% macro spatial_attention(query, key, value, head_size) -%}
{#- An element of a query takes as long as some 10,000 multiply-adds, and 25 for each
    key. Half of a table is room for the next step. -#}
{{ dbt_nn.parallel_work(
    '(select 10000 + 25 * (max(y) + 1) * (max(x) + 1) from ' ~ key ~ ')'
    ~ " * pg_relation_size('" ~ query ~ "') / 8"
) }}
with {% if dbt_nn.is_banded() -%}
band as materialized (
    select {{ dbt_nn.images_of_band(key) }} as images
),

{% endif -%}
keys as materialized (
    {{ dbt_nn.elements_in_order(key) | indent }}
),

value_elements as materialized (
    {{ dbt_nn.elements_in_order(value) | indent }}
),

heads as materialized (
    select
        image.image_id,
        image.places,
        image.size,
        head.number as head,
        image.size * head.number as start,
        {# the least that is 1 (mod size) and not below the places #}
        1 + (image.places + image.size - 2) / image.size * image.size as stride
    from (
        select
            images.*,
            coalesce({{ head_size }}, images.n) as size
        from (
            select
                image_id,
                count(*)::integer as places,
                max(cardinality(elements)) as n
            from keys
            group by image_id
        ) as images
    ) as image
    cross join generate_series(0, image.n / image.size - 1) as head (number)
),

{# what every query of a head meets #}
memory as materialized (
    select
        heads.*,
        k.keys,
        k.longest,
        case when heads.size * heads.stride <= 16000 then (
            select {{ dbt_nn.db_function('vector_concat') }}(slice.x order by slice.j)
            from (
                select
                    j,
                    subvector(
                        array(
                            select {{ dbt_nn.without_tiny(
                                'keys.elements[heads.start + 1 + (j + keys.place) % heads.size]'
                            ) }}
                            from keys
                            where keys.image_id = heads.image_id
                        )::vector || {{ dbt_nn.broadcast('0', 'heads.size') }},
                        1,
                        heads.stride
                    ) as x
                from generate_series(0, heads.size - 1) as j
            ) as slice
        ) end as skewed,
        array(
            select array(
                select v.elements[heads.start + feature]
                from value_elements as v
                where v.image_id = heads.image_id
            )::vector
            from generate_series(1, heads.size) as feature
        ) as features,
        {{ dbt_nn.broadcast('1', 'heads.places') }} as ones,
        {{ dbt_nn.exp_coefficients('heads.stride') }} as coefficients
    from heads
    cross join lateral (
        select
            array_agg(part.x) as keys,
            max(vector_norm(part.x)) as longest
        from (
            select elements[heads.start + 1:heads.start + heads.size]::vector as x
            from keys
            where image_id = heads.image_id
        ) as part
    ) as k
),

queries as (
    select
        memory.*,
        q.y,
        q.x,
        q.activation,
        case when memory.skewed is not null
            then {{ dbt_nn.exp_squarings('vector_norm(q.activation) * memory.longest') }}
        end as squarings
    from memory
    cross join lateral (
        select
            x.y,
            x.x,
            array(
                select {{ dbt_nn.without_tiny('element.x / sqrt(memory.size)') }}
                from (
                    select unnest(
                        subvector(x.activation, memory.start + 1, memory.size)::real[]
                    ) as x
                ) as element
            )::vector as activation
        from {{ dbt_nn.at_frontier(query, 'x') }}
        where x.image_id = memory.image_id
            and {{ dbt_nn.in_image_band('x', '(select images from band)') }}
        offset 0
    ) as q
    offset 0
),

{# not normalized, and with zeros after the last place #}
weights as (
    select
        queries.*,
        case
            when queries.squarings is not null then subvector(
                {{ dbt_nn.vector_exp(
                    dbt_nn.db_function('sum_slices') ~ '('
                    ~ dbt_nn.db_function('repeat_vector') ~ '('
                    ~ 'queries.activation * '
                    ~ dbt_nn.broadcast('1 / 2.0 ^ queries.squarings', 'queries.size') ~ ', '
                    ~ 'queries.size * queries.stride'
                    ~ ') * queries.skewed, queries.size)',
                    'queries.coefficients',
                    'queries.squarings'
                ) }},
                1,
                queries.places
            )
            else {{ dbt_nn.softmax('array(
                select inner_product(key.x, queries.activation)
                from (select unnest(queries.keys) as x) as key
            )') | indent(12) }}
        end as weight
    from queries
    offset 0
),

outputs as (
    select
        {{ dbt_nn.place('weights') }},
        weights.head,
        array(
            select inner_product(feature.x, weights.weight) / total.x
            from (
                select inner_product(weights.weight, weights.ones) as x
            ) as total
            cross join (select unnest(weights.features) as x) as feature
        )::vector as activation
    from weights
    offset 0
)

select
    {{ dbt_nn.place('outputs') }},
    {{ dbt_nn.db_function('vector_concat') }}(
        outputs.activation order by outputs.head
    ) as activation
from outputs
group by {{ dbt_nn.place('outputs') }}
{%- endmacro %}


{#- The places of each of the band's images, numbered from 0 and in order, with
    their channels as an array: what reads them one after another needs no sort. -#}
{% macro elements_in_order(input) -%}
select
    image_id,
    row_number() over (partition by image_id order by y, x)::integer - 1 as place,
    activation::real[] as elements
from {{ dbt_nn.at_frontier(input, 'x') }}
where {{ dbt_nn.matters_to_band('x', '(select images from band)') }}
order by image_id, y, x
{%- endmacro %}
