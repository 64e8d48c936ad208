{#-
    Applies an activation function to each element of a vector expression.

    activation   name as in transformers' and diffusers' configs: gelu_new,
                 gelu_pytorch_tanh
    x            vector(n), an expression of the enclosing row
    -> vector(n), computed in float8. unnest() in a select list keeps the
       order, and stores nothing
-#}
{% macro elementwise(activation, x) -%}
    {{ return(adapter.dispatch('elementwise', 'dbt_nn')(activation, x)) }}
{%- endmacro %}


{% macro postgres__elementwise(activation, x) -%}
    (
        select array_agg({{ activation_function(activation, 'element.x') }})
        from (select unnest({{ x }}::real[]) as x) as element
    )::vector
{%- endmacro %}


{#- The scalar expression f(x) for float x; x is referenced several times. -#}
{% macro activation_function(activation, x) -%}
    {%- if activation in ('gelu_new', 'gelu_pytorch_tanh') -%}
        {{ return(gelu_tanh(x)) }}
    {%- else -%}
        {{ exceptions.raise_compiler_error(
            "activation function '" ~ activation ~ "' is not known; known are "
            ~ "gelu_new and gelu_pytorch_tanh"
        ) }}
    {%- endif -%}
{%- endmacro %}


{#-
    GELU in its tanh form, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in
    float8: Hendrycks and Gimpel 2016; transformers' NewGELUActivation.
-#}
{% macro gelu_tanh(x) -%}
    0.5 * {{ x }} * (1 + tanh(
        sqrt(2 / pi()) * {{ x }} * (1 + 0.044715 * {{ x }}::float8 * {{ x }})
    ))
{%- endmacro %}
