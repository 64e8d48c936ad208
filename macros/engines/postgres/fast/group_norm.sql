{#-
    group_norm() of parts of an image's lines. An operation of pgvector costs 0.1
    microseconds a call beside 0.6 to 1.3 ns a number, and a place has as few as 64
    numbers: so some places side by side are one vector, about as long as those of
    vector_silu() in gelu.sql, until the layer's rows are written. The sums over places
    are averages of such vectors, and those over the channels of a group inner products.
-#}

{% macro postgres__group_norm(input, weights, groups, epsilon, activation) -%}
{#- An element takes as long as some 60 multiply-adds, and 150 with an activation
    function. Half of a table is room for the next step. -#}
{{ dbt_nn.parallel_work(
    "pg_relation_size('" ~ input ~ "') / 8 * " ~ (150 if activation else 60)
) }}
with {% if dbt_nn.is_banded() -%}
band as materialized (
    select {{ dbt_nn.images_of_band(input) }} as images
),

{% endif -%}
{# `places` make a part: as many as fit, and divide a line in equal parts #}
images as materialized (
    select
        image.*,
        image.n / image.groups as size,
        {{ dbt_nn.broadcast('1', 'image.n / image.groups') }} as ones,
        (
            select max(places)
            from generate_series(1, image.width) as places
            where image.width % places = 0
                and places * image.n <= greatest(image.n, {{ dbt_nn.norm_part() }})
        ) as places
    from (
        select
            x.image_id,
            vector_dims(x.activation) as n,
            {{ groups }} as groups,
            (
                select max(line.x) + 1
                from {{ input }} as line
                where line.image_id = x.image_id and line.y = 0
            ) as width
        from {{ dbt_nn.at_frontier(input, 'x') }}
        where x.y = 0 and x.x = 0
            and {{ dbt_nn.matters_to_band('x', '(select images from band)') }}
        offset 0
    ) as image
),

parts as materialized (
    select
        first.image_id,
        first.y,
        first.x,
        part.activation
    from images
    inner join {{ input }} as first
        on first.image_id = images.image_id
        and first.x % images.places = 0
    cross join lateral (
        select {{ dbt_nn.db_function('vector_concat') }}(place.activation) as activation
        from (
            select activation
            from {{ input }}
            where image_id = first.image_id
                and y = first.y
                and x >= first.x
                and x < first.x + images.places
            order by x
        ) as place
    ) as part
),

means as materialized (
    select
        part.image_id,
        {{ dbt_nn.repeated_part(
            dbt_nn.of_groups(dbt_nn.group_mean('part.mean')), 'images'
        ) | indent(8) }} as mean,
        {{ dbt_nn.tiny_vector('vector_dims(part.mean)') }} as tiny
    from (
        select image_id, avg(activation) as mean
        from parts
        group by image_id
    ) as part
    inner join images using (image_id)
),

centered as materialized (
    select
        parts.image_id,
        parts.y,
        parts.x,
        {{ dbt_nn.flushed('parts.activation - means.mean', 'means.tiny') }} as activation
    from parts
    inner join means using (image_id)
),

scales as materialized (
    select
        images.image_id,
        images.places,
        images.n,
        {{ dbt_nn.repeated_part(
            dbt_nn.of_groups(
                '1 / sqrt(' ~ dbt_nn.group_mean('part.square') ~ ' + ' ~ epsilon ~ ')'
            ) ~ ' * ' ~ dbt_nn.flushed('norm.weight', 'norm.tiny'),
            'images'
        ) | indent(8) }} as scale,
        {{ dbt_nn.repeated_part('norm.bias', 'images') }} as bias
    from (
        select image_id, avg(activation * activation) as square
        from centered
        group by image_id
    ) as part
    inner join images using (image_id)
    cross join (
        select
            weight,
            bias,
            {{ dbt_nn.tiny_vector('vector_dims(weight)') }} as tiny
        from {{ weights }}
        offset 0
    ) as norm
),

normed as (
    select
        centered.image_id,
        centered.y,
        centered.x,
        scales.places,
        scales.n,
        centered.activation * scales.scale + scales.bias as activation
    from centered
    inner join scales using (image_id)
    where {{ dbt_nn.in_image_band('centered', '(select images from band)') }}
    offset 0
),

activated as (
    select
        normed.image_id,
        normed.y,
        normed.x,
        normed.places,
        normed.n,
        {% if activation -%}
            {{ dbt_nn.elementwise(activation, 'normed.activation') }}
        {%- else -%}
            normed.activation
        {%- endif %} as activation
    from normed
    offset 0
)

select
    activated.image_id,
    activated.y,
    activated.x + place.i as x,
    subvector(activated.activation, place.i * activated.n + 1, activated.n) as activation
from activated
cross join generate_series(0, activated.places - 1) as place (i)
{%- endmacro %}


{#- The most numbers in a part of a line, unless one place has more. -#}
{% macro norm_part() -%}
    {{ return(1024) }}
{%- endmacro %}


{#- A vector of channels from a scalar expression of each group.number: a scalar
    subquery where `images` are joined. -#}
{% macro of_groups(x) -%}
(
    select {{ dbt_nn.db_function('vector_concat') }}(
        {{ dbt_nn.repeated(x, 'images.size') }} order by number
    )
    from generate_series(0, images.groups - 1) as number
)
{%- endmacro %}


{#- The mean of the group `number` over a part's vector: a scalar subquery. -#}
{% macro group_mean(x) -%}
(
    select sum(inner_product(
        subvector({{ x }}, place * images.n + number * images.size + 1, images.size), images.ones
    )) / (images.places * images.size)
    from generate_series(0, images.places - 1) as place
)
{%- endmacro %}


{#- A vector of channels again and again, for the places of a part. -#}
{% macro repeated_part(x, images) -%}
{{ dbt_nn.db_function('repeat_vector') }}({{ x }}, {{ images }}.places * {{ images }}.n)
{%- endmacro %}
