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
    {%- set kernel = dbt_nn.form(
        dbt_nn.default__group_norm, adapter.dispatch('group_norm', 'dbt_nn')
    ) -%}
    {{ return(kernel(input, weights, groups, epsilon, activation)) }}
{%- endmacro %}


{% macro default__group_norm(input, weights, groups, epsilon, activation) -%}
with elements as (
    select
        {{ dbt_nn.place('x') }},
        element.i as channel,
        (element.i - 1) * {{ groups }} / vector_dims(x.activation) as number,
        element.value as value
    from {{ dbt_nn.at_frontier(input, 'x') }}
    cross join {{ dbt_nn.elements_of('x.activation', 'element') }}
),

normed as (
    select
        {{ dbt_nn.place('elements') }},
        elements.channel,
        (elements.value - avg(elements.value) over one_group)
        / sqrt(var_pop(elements.value) over one_group + {{ epsilon }})
        * weight.value + bias.value as value
    from elements
    cross join {{ weights }} as norm
    inner join {{ dbt_nn.elements_of('norm.weight', 'weight') }} on weight.i = elements.channel
    inner join {{ dbt_nn.elements_of('norm.bias', 'bias') }} on bias.i = elements.channel
    window one_group as (partition by elements.image_id, elements.number)
)

select
    {{ dbt_nn.place('normed') }},
    {{ dbt_nn.vector_of(
        dbt_nn.activation_function(activation, 'normed.value') if activation else 'normed.value',
        by='normed.channel',
    ) }} as activation
from normed
group by {{ dbt_nn.place('normed') }}
{%- endmacro %}
