{#-
    group_norm() with sums over places as averages of vectors: only one vector an image
    is taken apart into its groups, where the plain form takes apart every place's.
-#}

{% macro postgres__group_norm(input, weights, groups, epsilon, activation) -%}
{#- An element takes as long as some 150 multiply-adds, and 550 with an activation
    function. Half of a table is room for the next step. -#}
{{ dbt_nn.parallel_work(
    "pg_relation_size('" ~ input ~ "') / 8 * " ~ (550 if activation else 150)
) }}
with {% if dbt_nn.is_banded() -%}
band as materialized (
    select {{ dbt_nn.images_of_band(input) }} as images
),

{% endif -%}
means as materialized (
    select
        channel.image_id,
        {{ dbt_nn.group_mean('channel.mean', groups) }} as mean,
        {{ dbt_nn.tiny_vector('vector_dims(channel.mean)') }} as tiny
    from (
        select image_id, avg(activation) as mean
        from {{ dbt_nn.at_frontier(input, 'x') }}
        where {{ dbt_nn.matters_to_band('x', '(select images from band)') }}
        group by image_id
    ) as channel
),

centered as materialized (
    select
        {{ dbt_nn.place('x') }},
        {{ dbt_nn.flushed('x.activation - means.mean', 'means.tiny') }} as activation
    from {{ dbt_nn.at_frontier(input, 'x') }}
    inner join means using (image_id)
),

scales as materialized (
    select
        channel.image_id,
        (
            select array_agg(1 / sqrt(variance.x + {{ epsilon }}))
            from (
                select unnest({{ dbt_nn.group_mean('channel.square', groups) }}::real[]) as x
            ) as variance
        )::vector * {{ dbt_nn.flushed('norm.weight', 'norm.tiny') }} as scale,
        norm.bias
    from (
        select image_id, avg(activation * activation) as square
        from centered
        group by image_id
    ) as channel
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
        {{ dbt_nn.place('centered') }},
        centered.activation * scales.scale + scales.bias as activation
    from centered
    inner join scales using (image_id)
    where {{ dbt_nn.in_image_band('centered', '(select images from band)') }}
    offset 0
)

select
    {{ dbt_nn.place('normed') }},
    {% if activation -%}
        {{ dbt_nn.elementwise(activation, 'normed.activation') }}
    {%- else -%}
        normed.activation
    {%- endif %} as activation
from normed
{%- endmacro %}


{#- A vector(n) of channels, each replaced by the mean of its group. -#}
{% macro group_mean(x, groups) -%}
    (
        select array_agg(means.mean order by means.channel)
        from (
            select
                element.channel,
                avg(element.value) over (
                    partition by
                        (element.channel - 1) * {{ groups }} / vector_dims({{ x }})
                ) as mean
            from unnest({{ x }}::real[])
                with ordinality as element (value, channel)
        ) as means
    )::vector
{%- endmacro %}
