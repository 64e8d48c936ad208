{#- Whether NaN or an infinity is among the elements. -#}
{% macro not_finite(x) -%}
    {{ return(adapter.dispatch('not_finite', 'dbt_nn')(x)) }}
{%- endmacro %}


{% macro postgres__not_finite(x) -%}
    pg_typeof({{ x }}) = 'real[]'::regtype
    and {{ x }}::real[] && '{NaN,Infinity,-Infinity}'::real[]
{%- endmacro %}
