{#- How many elements a vector or an array has; NULL is none. -#}
{% macro elements(x) -%}
    {{ return(adapter.dispatch('elements', 'dbt_nn')(x)) }}
{%- endmacro %}


{% macro postgres__elements(x) -%}
    case
        when pg_typeof({{ x }}) = 'real[]'::regtype then cardinality({{ x }}::real[])
        else vector_dims({{ x }}::vector)
    end
{%- endmacro %}
