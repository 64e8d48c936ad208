{#-
    Layer normalisation over the frontier: (x - mean) / sqrt(var + epsilon)
    * weight + bias, with the population variance.

    input     [places, n]   relation of a layer
    weights   [n], [n]      one row: (weight, bias)
    epsilon   scalar SQL expression
    -> [places, n]

    Ba et al. 2016; behaves as torch.nn.LayerNorm.
-#}
{% macro layer_norm(input, weights, epsilon) -%}
    {%- set kernel = dbt_nn.form(
        dbt_nn.default__layer_norm, adapter.dispatch('layer_norm', 'dbt_nn')
    ) -%}
    {{ return(kernel(input, weights, epsilon)) }}
{%- endmacro %}


{% macro default__layer_norm(input, weights, epsilon) -%}
select
    {{ dbt_nn.place('x') }},
    (
        select {{ dbt_nn.vector_of(
            '(element.value - moments.mean) / sqrt(moments.variance + ' ~ epsilon ~ ')'
            ~ ' * weight.value + bias.value',
            by='element.i',
        ) }}
        from {{ dbt_nn.elements_of('x.activation', 'element') }}
        inner join {{ dbt_nn.elements_of('norm.weight', 'weight') }} using (i)
        inner join {{ dbt_nn.elements_of('norm.bias', 'bias') }} using (i)
    ) as activation
from {{ dbt_nn.at_frontier(input, 'x') }}
cross join lateral (
    select
        avg(element.value) as mean,
        var_pop(element.value) as variance
    from {{ dbt_nn.elements_of('x.activation', 'element') }}
) as moments
cross join {{ weights }} as norm
{%- endmacro %}


{#- A vector of n times the same number. -#}
{% macro broadcast(x, n) -%}
    array_fill(({{ x }})::real, array[{{ n }}])::vector
{%- endmacro %}
