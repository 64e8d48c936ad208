{#-
    The few words in which plain kernels speak of vectors and weights, beside the
    operators `+` and `*` (element by element) and `||`. An engine gives each of them.
-#}

{#- The inner product of two vectors, a float8. -#}
{% macro dot(a, b) -%}
    {{ return(adapter.dispatch('dot', 'dbt_nn')(a, b)) }}
{%- endmacro %}


{#- A vector of the number `x` of each row, in the order of `by`: an aggregate. -#}
{% macro vector_of(x, by) -%}
    {{ return(adapter.dispatch('vector_of', 'dbt_nn')(x, by)) }}
{%- endmacro %}


{#- A vector's elements: a FROM item with the columns value and i, from 1. -#}
{% macro elements_of(vector, alias) -%}
    {{ return(adapter.dispatch('elements_of', 'dbt_nn')(vector, alias)) }}
{%- endmacro %}


{#- So many elements of a vector, after the first `skipped`. -#}
{% macro slice(vector, skipped, n) -%}
    {{ return(adapter.dispatch('slice', 'dbt_nn')(vector, skipped, n)) }}
{%- endmacro %}


{#- The part of an input that a row of weights is for: an expression. All of it, where
    an engine keeps an output feature's weights in one row. -#}
{% macro input_chunk(x, chunk, weights) -%}
    {{ return(adapter.dispatch('input_chunk', 'dbt_nn')(x, chunk, weights)) }}
{%- endmacro %}


{% macro default__input_chunk(x, chunk, weights) -%}
    {{ x }}
{%- endmacro %}
