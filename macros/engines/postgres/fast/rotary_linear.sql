{#-
    rotary_linear() by the products of linear(), whose places meet blocks of weights, and
    by a function of whole heads.
-#}

{% macro postgres__rotary_linear(input, weights, rotary, norm, epsilon) -%}
{{ dbt_nn.parallel_matmul(input, weights) -}}
with {{ dbt_nn.linear_products(input, weights) }}
{%- if norm %},

{# one row #}
norm as materialized (
    select
        stored.weight * {{ dbt_nn.repeated(
            'sqrt(vector_dims(stored.weight))', 'vector_dims(stored.weight)'
        ) }} as weight,
        {{ dbt_nn.broadcast(
            'sqrt(vector_dims(stored.weight) * ' ~ epsilon ~ ')', 1
        ) }} as last
    from {{ norm }} as stored
)
{%- endif %}

select
    {{ dbt_nn.place('product') }},
    {{ dbt_nn.db_function('rotated_heads') }}(
        {%- if norm %}
        {{ dbt_nn.db_function('normalized_heads') }}(
            product.activation, norm.weight, norm.last
        ),
        {%- else %}
        product.activation,
        {%- endif %}
        rotary.activation
    ) as activation
from product
inner join {{ rotary }} as rotary
    using ({{ dbt_nn.place_columns() | join(', ') }})
{%- if norm %}
cross join norm
{%- endif %}
{%- endmacro %}


{#-
    DDL of the functions of all heads of a place, side by side, of d numbers each:

        rotated_heads(x, angles)              turned; angles as rotary_embedding() has them
        normalized_heads(x, weight, last)     an RMS norm of each; weight times sqrt(d), and
                                              a vector of one number, sqrt(d epsilon)

    Numbers near 0 are 0, so that no product underflows: see flushed().
-#}
{% macro create_rotary_functions() -%}
    create or replace function {{ dbt_nn.db_function('rotated_heads') }} (
        x vector, angles vector
    ) returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        n constant integer := vector_dims(angles) / 2;
        half constant integer := n / 2;
        tiny constant vector := {{ dbt_nn.equal_numbers(2 ** -44) }};
        cos constant vector := subvector(angles, 1, n) + tiny - tiny;
        sin vector := subvector(angles, n + 1, half) + subvector(tiny, 1, half) - subvector(tiny, 1, half);
        head vector;
        y vector;
    begin
        sin := (sin - sin - sin) || sin;
        for number in 0..vector_dims(x) / n - 1 loop
            head := subvector(x, number * n + 1, n) + tiny - tiny;
            head := head * cos + (subvector(head, half + 1, half) || subvector(head, 1, half)) * sin;
            y := coalesce(y || head, head);
        end loop;
        return y;
    end
    $body$;

    create or replace function {{ dbt_nn.db_function('normalized_heads') }} (
        x vector, weight vector, last vector
    ) returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        n constant integer := vector_dims(weight);
        tiny constant vector := {{ dbt_nn.equal_numbers(2 ** -44) }};
        scale constant vector := weight + tiny - tiny;
        head vector;
        y vector;
    begin
        for number in 0..vector_dims(x) / n - 1 loop
            head := subvector(x, number * n + 1, n) + tiny - tiny;
            head := subvector(l2_normalize(head || last), 1, n) * scale;
            y := coalesce(y || head, head);
        end loop;
        return y;
    end
    $body$;
{%- endmacro %}
