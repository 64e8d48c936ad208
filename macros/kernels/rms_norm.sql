{#-
    Root mean square normalisation over the frontier: x / sqrt(mean(x^2) + epsilon)
    * weight.

    input     [places, n]   relation of a layer
    weights   [n]           one row: (weight)
    epsilon   scalar SQL expression
    -> [places, n]

    Zhang and Sennrich 2019; behaves as torch.nn.RMSNorm and transformers' LlamaRMSNorm.
-#}
{% macro rms_norm(input, weights, epsilon) -%}
    {%- set kernel = dbt_nn.form(
        dbt_nn.default__rms_norm, adapter.dispatch('rms_norm', 'dbt_nn')
    ) -%}
    {{ return(kernel(input, weights, epsilon)) }}
{%- endmacro %}


{% macro default__rms_norm(input, weights, epsilon) -%}
select
    {{ dbt_nn.place('x') }},
    (
        select {{ dbt_nn.vector_of(
            'element.value / sqrt(moment.mean_square + ' ~ epsilon ~ ') * weight.value',
            by='element.i',
        ) }}
        from {{ dbt_nn.elements_of('x.activation', 'element') }}
        inner join {{ dbt_nn.elements_of('norm.weight', 'weight') }} using (i)
    ) as activation
from {{ dbt_nn.at_frontier(input, 'x') }}
cross join lateral (
    select avg(element.value::float8 * element.value) as mean_square
    from {{ dbt_nn.elements_of('x.activation', 'element') }}
) as moment
cross join {{ weights }} as norm
{%- endmacro %}
