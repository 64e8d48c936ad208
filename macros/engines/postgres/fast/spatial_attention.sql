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
              the values, transposed to a vector over the places: features_of().
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
{# the places of each image, in order, and their transpose #}
keys as materialized (
    {{ dbt_nn.rows_of_image(key) | indent }}
),

value_rows as materialized (
    {{ dbt_nn.rows_of_image(value) | indent }}
),

{# one-hot vectors of a place's channels #}
units as materialized (
    select
        channel,
        subvector(line.x, line.n - channel + 1, line.n) as x
    from (
        select
            shape.n,
            {{ dbt_nn.broadcast('0', 'shape.n') }} || {{ dbt_nn.broadcast('1', '1') }}
            || {{ dbt_nn.broadcast('0', 'shape.n') }} as x
        from (select max(n) as n from keys) as shape
        where shape.n > 0
        offset 0
    ) as line
    cross join generate_series(0, line.n - 1) as channel
),

key_features as materialized (
    {{ dbt_nn.features_of('keys') | indent }}
),

value_features as materialized (
    {{ dbt_nn.features_of('value_rows') | indent }}
),

images as materialized (
    select
        shape.*,
        {{ dbt_nn.broadcast('1', 'shape.places') }} as ones,
        {{ dbt_nn.tiny_vector('shape.places') }} as tiny_places,
        {{ dbt_nn.tiny_vector('shape.size') }} as tiny,
        {{ dbt_nn.broadcast('1 / sqrt(shape.size)', 'shape.size') }} as scale,
        case when greatest(shape.size, 7) * shape.stride <= 16000
            then {{ dbt_nn.exp_coefficients('shape.stride') | indent(12) }}
        end as coefficients,
        {# 1 at every size-th place, from the first, the second ... on #}
        array(
            select subvector({{ dbt_nn.db_function('repeat_vector') }}(
                array(
                    select (i = feature)::integer
                    from generate_series(1, shape.size) as i
                )::vector,
                shape.stride + shape.size
            ), 1, shape.stride)
            from generate_series(1, shape.size) as feature
            order by feature
        ) as masks
    from (
        select
            image.*,
            {# the least that is 1 (mod size) and not below the places #}
            1 + (image.places + image.size - 2) / image.size * image.size as stride
        from (
            select
                image_id,
                n,
                cardinality(rows) as places,
                coalesce({{ head_size }}, n) as size
            from keys
            offset 0
        ) as image
        offset 0
    ) as shape
),

{# what every query of a head meets #}
memory as materialized (
    select
        images.image_id,
        images.places,
        images.size,
        images.stride,
        images.ones,
        images.tiny,
        images.scale,
        images.coefficients,
        head.number as head,
        head.number * images.size as start,
        (
            select max(vector_norm(subvector(x, head.number * images.size + 1, images.size)))
            from unnest(keys.rows) as x
        ) as longest,
        case when images.coefficients is not null then (
            select {{ dbt_nn.db_function('vector_concat') }}(slice.x order by slice.j)
            from (
                select
                    j,
                    {{ dbt_nn.db_function('vector_sum') }}(
                        feature.x
                        * images.masks[1 + (feature.i + images.size - 1 - j) % images.size]
                    ) as x
                from generate_series(0, images.size - 1) as j
                cross join unnest(head_keys.features) with ordinality as feature (x, i)
                group by j
            ) as slice
        ) end as skewed,
        value_features.x[
            head.number * images.size + 1:(head.number + 1) * images.size
        ] as features
    from images
    inner join keys using (image_id)
    inner join key_features using (image_id)
    inner join value_features using (image_id)
    cross join generate_series(0, images.n / images.size - 1) as head (number)
    cross join lateral (
        select
            array_agg(
                subvector(
                    feature.x || {{ dbt_nn.broadcast('0', 'images.size') }}, 1, images.stride
                )
                order by feature.i
            ) as features
        from (
            select
                i,
                {{ dbt_nn.flushed('x', 'images.tiny_places') }} as x
            from unnest(key_features.x[
                head.number * images.size + 1:(head.number + 1) * images.size
            ]) with ordinality as feature (x, i)
            offset 0
        ) as feature
    ) as head_keys
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
            {{ dbt_nn.flushed(
                'subvector(x.activation, memory.start + 1, memory.size)', 'memory.tiny'
            ) }} * memory.scale as activation
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
                    dbt_nn.db_function('skewed_products') ~ '('
                    ~ 'queries.activation * '
                    ~ dbt_nn.broadcast('1 / 2.0 ^ queries.squarings', 'queries.size')
                    ~ ', queries.skewed, queries.size)',
                    'queries.coefficients',
                    'queries.squarings'
                ) }},
                1,
                queries.places
            )
            else {{ dbt_nn.softmax('array(
                select inner_product(
                    subvector(key.x, queries.start + 1, queries.size), queries.activation
                )
                from (
                    select unnest(rows) as x from keys where image_id = queries.image_id
                ) as key
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


{#- The places of each of the band's images, in order: a SELECT of (image_id, n, rows).
    A row's vector is a copy in memory, where a table may have it in TOAST. -#}
{% macro rows_of_image(input) -%}
select
    x.image_id,
    max(vector_dims(x.activation)) as n,
    array_agg({{ dbt_nn.detoasted('x.activation') }} order by x.y, x.x) as rows
from {{ dbt_nn.at_frontier(input, 'x') }}
where {{ dbt_nn.matters_to_band('x', '(select images from band)') }}
group by x.image_id
{%- endmacro %}


{#- The same transposed, each channel as a vector over the places: a SELECT of
    (image_id, x, an array). A channel of up to 64 places is their inner products with a
    one-hot vector, which takes an eighth of the time of picking them out of arrays. -#}
{% macro features_of(rows) -%}
{%- set block = dbt_nn.feature_block() -%}
select
    feature.image_id,
    array_agg(feature.x order by feature.channel) as x
from (
    select
        part.image_id,
        part.channel,
        {{ dbt_nn.db_function('vector_concat') }}(part.x order by part.block) as x
    from (
        select
            image.image_id,
            image.block,
            unit.channel,
            {{ dbt_nn.db_function('few_products') }}(columns, unit.x) as x
        from (
            select
                image_id,
                block,
                rows[block * {{ block }} + 1:(block + 1) * {{ block }}] as rows
            from {{ rows }}
            cross join generate_series(0, (cardinality(rows) - 1) / {{ block }}) as block
            offset 0
        ) as image
        cross join lateral {{ dbt_nn.db_function('columns_of') }}(
            image.block, image.rows
        ) as columns
        cross join lateral (
            select channel, x
            from units
            where columns.w0 is not null
            offset 0
        ) as unit
        offset 0
    ) as part
    group by part.image_id, part.channel
) as feature
group by feature.image_id
{%- endmacro %}
