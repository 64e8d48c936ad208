{#-
    Applies an activation function to each element of a vector expression.

    activation   name as in transformers' and diffusers' configs, see
                 activation_function()
    x            vector(n), an expression of the enclosing row
    -> vector(n), computed in float8; PostgreSQL's fast form of GELU in float32
-#}
{% macro elementwise(activation, x) -%}
    {%- set kernel = dbt_nn.form(
        dbt_nn.default__elementwise, adapter.dispatch('elementwise', 'dbt_nn')
    ) -%}
    {{ return(kernel(activation, x)) }}
{%- endmacro %}


{% macro default__elementwise(activation, x) -%}
    (
        select {{ dbt_nn.vector_of(dbt_nn.activation_function(activation, 'element.value'), by='element.i') }}
        from {{ dbt_nn.elements_of(x, 'element') }}
    )
{%- endmacro %}


{#-
    The scalar expression f(x), in float8, for float x; x is referenced several times.
    exp() beyond 709 on either side is an error in Postgres, and beyond 700 makes no
    difference here.

    gelu, gelu_python
        GELU, x/2 (1 + erf(x / sqrt(2))): Hendrycks and Gimpel 2016; torch.nn.GELU
    gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu_fast, gelu_accurate
        GELU in its tanh form, x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3):
        the same authors; transformers' NewGELUActivation. (1 + tanh(u)) / 2 is
        1 / (1 + exp(-2u)), and exp() is the faster one.
    silu, swish
        x / (1 + exp(-x)): Hendrycks and Gimpel 2016; torch.nn.SiLU
    relu, sigmoid, tanh
        torch.nn.ReLU, torch.nn.Sigmoid, torch.nn.Tanh
    linear, identity
        x: transformers' LinearActivation, torch.nn.Identity
-#}
{% macro activation_function(activation, x) -%}
    {%- set activation = dbt_nn.activation_name(activation) -%}
    {%- if activation == 'gelu' -%}
    {{ x }} / 2 * (1 + erf({{ x }} / sqrt(2)))
    {%- elif activation == 'gelu_new' -%}
    {{ x }} / (1 + exp(greatest(least(
        -sqrt(8 / pi()) * {{ x }} * (1 + 0.044715 * {{ x }}::float8 * {{ x }}), 700
    ), -700)))
    {%- elif activation == 'silu' -%}
    {{ x }} / (1 + exp(greatest(least(-{{ x }}::float8, 700), -700)))
    {%- elif activation == 'relu' -%}
    greatest({{ x }}, 0)
    {%- elif activation == 'sigmoid' -%}
    1 / (1 + exp(greatest(least(-{{ x }}::float8, 700), -700)))
    {%- elif activation == 'tanh' -%}
    tanh({{ x }})
    {%- else -%}
    {{ x }}
    {%- endif -%}
{%- endmacro %}


{#- The first name of a function that has several; one that is not known is an error. -#}
{% macro activation_name(activation) -%}
    {%- set others = {
        'gelu': ['gelu_python'],
        'gelu_new': [
            'gelu_pytorch_tanh', 'gelu_python_tanh', 'gelu_fast', 'gelu_accurate'
        ],
        'silu': ['swish'],
        'relu': [],
        'sigmoid': [],
        'tanh': [],
        'linear': ['identity'],
    } -%}
    {%- for name in others if activation in [name] + others[name] -%}
        {{ name }}
    {%- else -%}
        {{ exceptions.raise_compiler_error(
            "activation function '" ~ activation ~ "' is not known; known are "
            ~ (others | list + others.values() | sum(start=[])) | join(', ')
        ) }}
    {%- endfor -%}
{%- endmacro %}


{#-
    An activation function as a layer of its own: f(x) at each place.

    input   [places, n]   relation of a layer
    -> [places, n]
-#}
{% macro activation_layer(input, activation) -%}
select
    {{ dbt_nn.place('x') }},
    {{ dbt_nn.elementwise(activation, 'x.activation') }} as activation
from {{ dbt_nn.at_frontier(input, 'x') }}
{%- endmacro %}
