{#-
    The elements of a vector or an array as a text, rounded: dbt's unit tests
    compare numbers exactly, and float32 sums depend on the processor.
-#}
{% macro rounded(x, digits=4) -%}
    {{ return(adapter.dispatch('rounded', 'dbt_nn')(x, digits)) }}
{%- endmacro %}


{% macro postgres__rounded(x, digits) -%}
    (
        select array_agg(round(element.x::float8::numeric, {{ digits }}) order by element.i)
        from unnest(({{ x }})::real[]) with ordinality as element (x, i)
    )::text
{%- endmacro %}
