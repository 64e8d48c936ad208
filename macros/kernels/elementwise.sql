{#-
    Applies an activation function to each element of a vector expression.

    activation   name as in transformers' and diffusers' configs: gelu_new,
                 gelu_pytorch_tanh, silu
    x            vector(n), an expression of the enclosing row
    -> vector(n), computed in float8. unnest() in a select list keeps the
       order, and stores nothing
-#}
{% macro elementwise(activation, x) -%}
    {{ return(adapter.dispatch('elementwise', 'dbt_nn')(activation, x)) }}
{%- endmacro %}


{% macro postgres__elementwise(activation, x) -%}
    array(
        select {{ activation_function(activation, 'element.x') }}
        from (select unnest({{ x }}::real[]) as x) as element
    )::vector
{%- endmacro %}


{#- The scalar expression f(x) for float x; x is referenced several times. -#}
{% macro activation_function(activation, x) -%}
    {%- if activation in ('gelu_new', 'gelu_pytorch_tanh') -%}
        {{ return(gelu_tanh(x)) }}
    {%- elif activation in ('silu', 'swish') -%}
        {{ return(silu(x)) }}
    {%- else -%}
        {{ exceptions.raise_compiler_error(
            "activation function '" ~ activation ~ "' is not known; known are "
            ~ "gelu_new, gelu_pytorch_tanh, silu and swish"
        ) }}
    {%- endif -%}
{%- endmacro %}


{#-
    GELU in its tanh form, x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715
    x^3), in float8: Hendrycks and Gimpel 2016; transformers' NewGELUActivation.
    (1 + tanh(u)) / 2 is 1 / (1 + exp(-2u)), and exp() is the faster one.
-#}
{% macro gelu_tanh(x) -%}
    {{ x }} / (1 + {{ bounded_exp(
        'least(-sqrt(8 / pi()) * ' ~ x ~ ' * (1 + 0.044715 * ' ~ x ~ '::float8 * ' ~ x
        ~ '), 700)'
    ) }})
{%- endmacro %}


{#-
    SiLU or Swish, x / (1 + exp(-x)), in float8: Hendrycks and Gimpel 2016;
    torch.nn.SiLU. exp() beyond 709 on either side is an error in Postgres, and
    beyond 700 makes no difference here.
-#}
{% macro silu(x) -%}
    {{ x }} / (1 + {{ bounded_exp('least(-' ~ x ~ '::float8, 700)') }})
{%- endmacro %}


{#-
    An activation function as a layer of its own: f(x) at each place.

    input   [places, n]   relation of a layer
    -> [places, n]
-#}
{% macro activation_layer(input, activation) -%}
select
    {{ place('x') }},
    {{ elementwise(activation, 'x.activation') }} as activation
from {{ at_frontier(input, 'x') }}
{%- endmacro %}
