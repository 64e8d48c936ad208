{#-
    DDL of what linear.sql calls, for weights in float32 and float16: functions that
    PostgreSQL inlines when it plans a statement, so that a block of weights is 64
    columns of a row there, whose products with a vector are one expression. Written out
    in each layer, they would hide what it does.

        columns_of(chunk, weights)   a block's rows of weights as columns w0, w1, ...
        products(columns, x)         their inner products with x
        chunk_of(x, chunk, type)     the part of x that meets a chunk of the weights, as
                                     their type, of which a NULL is given

    Where a block is shorter, its first row stands in, and its products are cut off.
-#}
{% macro create_matmul_functions() -%}
    {%- set rows = dbt_nn.feature_block() -%}
    {%- for type in ('vector', 'halfvec') %}
    {%- set columns = dbt_nn.db_function(type ~ '_columns') %}
    do $body$
    begin
        if to_regtype({{ dbt_nn.literal(columns) }}) is null then
            create type {{ columns }} as (
                chunk integer,
                {%- for i in range(rows) %}
                w{{ i }} {{ type }},
                {%- endfor %}
                n integer
            );
        end if;
    end
    $body$;

    create or replace function {{ dbt_nn.db_function('columns_of') }} (
        chunk integer, weights {{ type }}[]
    ) returns setof {{ columns }} language sql immutable parallel safe rows 1 as $body$
        select
            chunk,
            {%- for i in range(rows) %}
            coalesce(weights[{{ i + 1 }}], weights[1]),
            {%- endfor %}
            cardinality(weights)
        offset 0
    $body$;

    create or replace function {{ dbt_nn.db_function('products') }} (
        columns {{ columns }}, x {{ type }}
    ) returns vector language sql immutable parallel safe as $body$
        select subvector(array[
            {%- for i in range(rows) %}
            inner_product((columns).w{{ i }}, x){{ ',' if not loop.last }}
            {%- endfor %}
        ]::vector, 1, (columns).n)
    $body$;

    {%- set count = dbt_nn.chunk_count('x') %}
    {%- set size = '((vector_dims(x) + ' ~ count ~ ' - 1) / ' ~ count ~ ')' %}

    create or replace function {{ dbt_nn.db_function('chunk_of') }} (
        x vector, chunk integer, type {{ type }}
    ) returns {{ type }} language sql immutable parallel safe as $body$
        select (case
            when vector_dims(x) <= {{ dbt_nn.longest_chunk() }} then x
            else subvector(x, chunk * {{ size }} + 1, {{ size }})
        end)::{{ type }}
    $body$;
    {%- endfor %}
{%- endmacro %}
