{#- Population variance of a vector's elements, from their own mean, in float8. -#}
{% macro variance(x) -%}
    {{ return(adapter.dispatch('variance', 'dbt_nn')(x)) }}
{%- endmacro %}


{% macro postgres__variance(x) -%}
    (
        select var_pop(element.x::float8)
        from unnest({{ x }}::real[]) as element (x)
    )
{%- endmacro %}
