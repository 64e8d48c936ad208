{#-
    Group normalisation of images over the frontier: f((x - mean) /
    sqrt(var + epsilon) * weight + bias), with the mean and the population
    variance of each group of channels over a whole image.

    input       [image, h, w, n]   relation of a layer
    weights     [n], [n]           one row: (weight, bias)
    groups      scalar SQL expression; n / groups channels each
    epsilon     scalar SQL expression
    activation  name of f, see elementwise()
    -> [image, h, w, n]

    Wu and He 2018; behaves as torch.nn.GroupNorm.
-#}
{% macro group_norm(input, weights, groups, epsilon, activation=none) -%}
    {{ return(adapter.dispatch('group_norm', 'dbt_nn')(
        input, weights, groups, epsilon, activation
    )) }}
{%- endmacro %}


{% macro postgres__group_norm(input, weights, groups, epsilon, activation) -%}
{#- An element takes as long as some 150 multiply-adds, and 550 with an activation
    function. Half of a table is room for the next step. -#}
{{ parallel_work(
    "pg_relation_size('" ~ input ~ "') / 8 * " ~ (550 if activation else 150)
) }}
with band as materialized (
    select {{ images_of_band(input) }} as images
),

means as materialized (
    select
        channel.image_id,
        {{ group_mean('channel.mean', groups) }} as mean
    from (
        select image_id, avg(activation) as mean
        from {{ at_frontier(input, 'x') }}
        where {{ matters_to_band('x', '(select images from band)') }}
        group by image_id
    ) as channel
),

centered as materialized (
    select
        {{ place('x') }},
        x.activation - means.mean as activation
    from {{ at_frontier(input, 'x') }}
    inner join means using (image_id)
),

scales as materialized (
    select
        channel.image_id,
        (
            select array_agg(1 / sqrt(variance.x + {{ epsilon }}))
            from (
                select unnest({{ group_mean('channel.square', groups) }}::real[]) as x
            ) as variance
        )::vector * norm.weight as scale,
        norm.bias
    from (
        select image_id, avg(activation * activation) as square
        from centered
        group by image_id
    ) as channel
    cross join {{ weights }} as norm
),

normed as (
    select
        {{ place('centered') }},
        centered.activation * scales.scale + scales.bias as activation
    from centered
    inner join scales using (image_id)
    where {{ in_image_band('centered', '(select images from band)') }}
    offset 0
)

select
    {{ place('normed') }},
    {% if activation -%}
        {{ elementwise(activation, 'normed.activation') }}
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
