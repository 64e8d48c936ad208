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
    {{ return(adapter.dispatch('layer_norm', 'dbt_nn')(input, weights, epsilon)) }}
{%- endmacro %}


{% macro postgres__layer_norm(input, weights, epsilon) -%}
with x as materialized (
    select
        {{ place('x') }},
        x.activation,
        vector_dims(x.activation) as n
    from {{ at_frontier(input, 'x') }}
),

{# The mean of the elements is the inner product with a vector of 1/n. #}
centered as materialized (
    select
        {{ place('x') }},
        x.n,
        x.activation - {{ broadcast(
            'inner_product(x.activation, ' ~ broadcast('1.0 / x.n', 'x.n') ~ ')',
            'x.n',
        ) }} as activation
    from x
)

select
    {{ place('centered') }},
    centered.activation
    * {{ broadcast(
        '1 / sqrt(inner_product(centered.activation, centered.activation) '
        ~ '/ centered.n + ' ~ epsilon ~ ')',
        'centered.n',
    ) }}
    * norm.weight
    + norm.bias as activation
from centered
cross join {{ weights }} as norm
{%- endmacro %}


{#- A vector of n times the same number. -#}
{% macro broadcast(x, n) -%}
    array_fill(({{ x }})::real, array[{{ n }}])::vector
{%- endmacro %}
