{#-
    layer_norm() by products of vectors. No element is unnested, and nearly nothing is
    made of the same number n times, which takes as long as eight sums of vectors:

    The mean is the product with 1/n; an eighth of it, n/8 times the same number, is put
    together to the whole. To divide by sqrt(var + epsilon) is to normalize to the
    length sqrt(n), with one more element, sqrt(n epsilon), that is cut off again.

    A place of 384 channels takes 3.3 microseconds, and 7.2 where the mean and the
    deviation are vectors of n numbers.
-#}

{% macro postgres__layer_norm(input, weights, epsilon) -%}
{# one row #}
with norm as materialized (
    select
        {{ dbt_nn.flushed('stored.weight', 'stored.tiny') }}
        * {{ dbt_nn.broadcast('sqrt(stored.n)', 'stored.n') }} as weight,
        stored.bias,
        stored.n,
        stored.tiny,
        {{ dbt_nn.broadcast('sqrt(stored.n * ' ~ epsilon ~ ')', 1) }} as last
    from (
        select
            weight,
            bias,
            vector_dims(weight) as n,
            {{ dbt_nn.tiny_vector('vector_dims(weight)') }} as tiny
        from {{ weights }}
        offset 0
    ) as stored
)

select
    {{ dbt_nn.place('x') }},
    subvector(
        l2_normalize(
            {{ dbt_nn.flushed(
                'x.activation - subvector('
                ~ (['x.mean'] * 8) | join(' || ') ~ ', 1, norm.n)',
                'norm.tiny',
            ) }} || norm.last
        ),
        1,
        norm.n
    ) * norm.weight + norm.bias as activation
from norm
cross join lateral (
    select
        {{ dbt_nn.place('x') }},
        x.activation,
        {{ dbt_nn.broadcast(
            'inner_product(x.activation, norm.tiny) / '
            ~ dbt_nn.tiny_number() ~ ' / norm.n',
            '(norm.n + 7) / 8',
        ) }} as mean
    from {{ dbt_nn.at_frontier(input, 'x') }}
    offset 0
) as x
{%- endmacro %}
