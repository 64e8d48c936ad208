{#-
    rms_norm() by products of vectors: to divide by sqrt(mean(x^2) + epsilon) is to
    normalize to the length sqrt(n), with one more element, sqrt(n epsilon), that is cut
    off again.
-#}

{% macro postgres__rms_norm(input, weights, epsilon) -%}
{# one row #}
with norm as materialized (
    select
        {{ dbt_nn.flushed('stored.weight', 'stored.tiny') }}
        * {{ dbt_nn.repeated('sqrt(stored.n)', 'stored.n') }} as weight,
        stored.n,
        stored.tiny,
        {{ dbt_nn.broadcast('sqrt(stored.n * ' ~ epsilon ~ ')', 1) }} as last
    from (
        select
            weight,
            vector_dims(weight) as n,
            {{ dbt_nn.repeated(dbt_nn.tiny_number(), 'vector_dims(weight)') }} as tiny
        from {{ weights }}
        offset 0
    ) as stored
)

select
    {{ dbt_nn.place('x') }},
    subvector(
        l2_normalize({{ dbt_nn.flushed('x.activation', 'norm.tiny') }} || norm.last),
        1,
        norm.n
    ) * norm.weight as activation
from norm
cross join lateral (
    select {{ dbt_nn.place('x') }}, x.activation
    from {{ dbt_nn.at_frontier(input, 'x') }}
    offset 0
) as x
{%- endmacro %}
