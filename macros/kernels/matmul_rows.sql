{#-
    W x + b for every row of a relation, as a SELECT.

    rows      (place, activation vector(in))   relation or CTE
    weights   [out, in], [out]                 as in linear()
    -> (place, activation vector(out))

    A row of weights that is found serves a block of places, while it is in the
    processor's cache: looking it up costs about as much as its inner product.
    What a place gets does not depend on its block. A place that is alone in its
    block, such as a single new token, goes by matmul().
-#}
{% macro matmul_rows(rows, weights) -%}
    {{ return(adapter.dispatch('matmul_rows', 'dbt_nn')(rows, weights)) }}
{%- endmacro %}


{% macro postgres__matmul_rows(rows, weights) -%}
    {%- set slots = range(1, places_in_block() + 1) -%}
    {%- set columns = place_columns() + ['activation'] -%}
select
    {{ place('y') }},
    y.activation
from (
    select
        {%- for column in columns %}
        array_agg(numbered.{{ column }}) as {{ column }}{{ ',' if not loop.last }}
        {%- endfor %}
    from (
        select
            *,
            (row_number() over () - 1) / {{ places_in_block() }} as block
        from {{ rows }}
    ) as numbered
    group by numbered.block
) as x
cross join lateral unnest(
    {%- for column in place_columns() %}
    x.{{ column }},
    {%- endfor %}
    case
        when cardinality(x.activation) = 1
            then array[{{ matmul('x.activation[1]', weights) }}]
        else (
            select array[
                {%- for slot in slots %}
                {{ db_function('vector_sum') }}(
                    partial.y{{ slot }} order by partial.chunk
                ){{ ',' if not loop.last }}
                {%- endfor %}
            ]
            from (
                select
                    x_chunk.chunk,
                    chunk_y.*
                from (
                    select
                        chunk
                        {%- for slot in slots %},
                        {{ x_chunk('x.activation[' ~ slot ~ ']', 'x.activation[1]') }}
                        as x{{ slot }}
                        {%- endfor %}
                    from generate_series(
                        0, {{ chunk_count('x.activation[1]') }} - 1
                    ) as chunk
                    offset 0
                ) as x_chunk
                cross join lateral (
                    select
                        {%- for slot in slots %}
                        case when x_chunk.x{{ slot }} is not null then array_agg(
                            inner_product(w.weight, x_chunk.x{{ slot }}) + w.bias
                            order by w.feature
                        )::vector end as y{{ slot }}{{ ',' if not loop.last }}
                        {%- endfor %}
                    from {{ weights }} as w
                    where w.chunk = x_chunk.chunk
                ) as chunk_y
            ) as partial
        )
    end
) as y ({{ columns | join(', ') }})
where y.activation is not null
{%- endmacro %}


{#- Places that share a look-up of the weights. More would save little, and each
    is a column of the statement. -#}
{% macro places_in_block() -%}
    {{ return(8) }}
{%- endmacro %}
