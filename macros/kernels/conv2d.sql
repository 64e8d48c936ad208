{#-
    A convolution of images over the frontier: y = W * x + b (+ time embedding)
    (+ residual).

    input           [image, h, w, in]      relation of a layer
    weights         [out, k * k * in], [out]   as in linear(): the inputs of an
                    output feature are ordered by row, column, channel
    kernel_size     3, or 1: then it is a linear layer at each place
    stride          1, or 2: every second place
    padding         1, or 0 (with stride 2): zeros on the right and below only,
                    as diffusers' Downsample2D pads; a scalar SQL expression
    time_embedding  [image, out]           relation of a layer, added everywhere
    residual        [image, h', w', out]   relation of a layer, added
    -> [image, h', w', out]

    Behaves as torch.nn.Conv2d.
-#}
{% macro conv2d(
    input, weights, kernel_size=3, stride=1, padding=1, time_embedding=none, residual=none
) -%}
    {%- if kernel_size == 1 -%}
        {%- if stride != 1 or time_embedding -%}
            {{ exceptions.raise_compiler_error(
                'a convolution of 1 x 1 has neither a stride nor a time embedding here'
            ) }}
        {%- endif -%}
        {{ return(dbt_nn.linear(input, weights, residual=residual)) }}
    {%- endif -%}
    {%- set kernel = dbt_nn.form(dbt_nn.default__conv2d, adapter.dispatch('conv2d', 'dbt_nn')) -%}
    {{ return(kernel(input, weights, stride, padding, time_embedding, residual)) }}
{%- endmacro %}


{% macro default__conv2d(input, weights, stride, padding, time_embedding, residual) -%}
{# a place and its eight neighbours, row by row, zeros outside the image #}
with patches as (
    select
        middle.image_id,
        middle.y / {{ stride }} as y,
        middle.x / {{ stride }} as x,
        {{ dbt_nn.db_function('vector_concat') }}(
            coalesce(
                neighbour.activation,
                {{ dbt_nn.broadcast('0', 'vector_dims(middle.activation)') }}
            )
            order by down.i, across.i
        ) as activation
    from {{ dbt_nn.at_frontier(input, 'middle') }}
    cross join generate_series(-1, 1) as down (i)
    cross join generate_series(-1, 1) as across (i)
    left join {{ input }} as neighbour
        on neighbour.image_id = middle.image_id
        and neighbour.y = middle.y + down.i
        and neighbour.x = middle.x + across.i
    {%- if stride > 1 %}
    where middle.y % {{ stride }} = 1 - {{ padding }}
        and middle.x % {{ stride }} = 1 - {{ padding }}
    {%- endif %}
    group by middle.image_id, middle.y, middle.x
)

select
    {{ dbt_nn.place('patches') }},
    {{ dbt_nn.matmul('patches.activation', weights) }}
    {%- if time_embedding %}
    + time_embedding.activation
    {%- endif %}
    {%- if residual %}
    + residual.activation
    {%- endif %} as activation
from patches
{%- if time_embedding %}
inner join {{ time_embedding }} as time_embedding using (image_id)
{%- endif %}
{%- if residual %}
inner join {{ residual }} as residual using ({{ dbt_nn.place_columns() | join(', ') }})
{%- endif %}
{%- endmacro %}
