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

    im2col: two window passes put the nine neighbours of a place side by side,
    zeros outside the image, and then it is a matrix product.
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
        {{ return(linear(input, weights, residual=residual)) }}
    {%- endif -%}
    {{ return(adapter.dispatch('conv2d', 'dbt_nn')(
        input, weights, stride, padding, time_embedding, residual
    )) }}
{%- endmacro %}


{% macro postgres__conv2d(input, weights, stride, padding, time_embedding, residual) -%}
{#- To put neighbours side by side takes as long as some 60,000 multiply-adds a place. -#}
{{ parallel_matmul(input, weights, place_work=60000, stride=stride) }}
with in_row as (
    select
        image_id,
        y,
        x,
        {{ with_neighbours('activation', 'across', 'vector_dims(activation)') }} as activation
    from {{ at_frontier(input, 'x') }}
    where {{ in_row_band('y + 1', 'y - 1', input) }}
    window across as (partition by image_id, y order by x)
),

patches as (
    select
        image_id,
        y,
        x,
        {{ with_neighbours('activation', 'down', 'vector_dims(activation)') }} as activation
    from in_row
    window down as (partition by image_id, x order by y)
),

inputs as (
    select
        image_id,
        y / {{ stride }} as y,
        x / {{ stride }} as x,
        activation
    from patches
    where {{ in_row_band('y', 'y', input) }}
    {%- if stride > 1 %}
        and y % {{ stride }} = 1 - {{ padding }}
        and x % {{ stride }} = 1 - {{ padding }}
    {%- endif %}
),

product as (
    {{ matmul_rows('inputs', weights) }}
)

select
    {{ place('product') }},
    product.activation
    {%- if time_embedding %}
    + time_embedding.activation
    {%- endif %}
    {%- if residual %}
    + residual.activation
    {%- endif %} as activation
from product
{%- if time_embedding %}
inner join {{ time_embedding }} as time_embedding using (image_id)
{%- endif %}
{%- if residual %}
inner join {{ residual }} as residual using ({{ place_columns() | join(', ') }})
{%- endif %}
{%- endmacro %}


{#- A vector(n), the one before it and the one after it in a window, side by
    side; zeros where there is none. -#}
{% macro with_neighbours(x, window, n) -%}
    coalesce(lag({{ x }}) over {{ window }}, {{ broadcast('0', n) }})
        || {{ x }}
        || coalesce(lead({{ x }}) over {{ window }}, {{ broadcast('0', n) }})
{%- endmacro %}


{#- A condition: some of an image's rows `first` to `last` belong to the band. Bands
    are of rows side by side, since each needs the row above and below it as well. -#}
{% macro in_row_band(last, first, input) -%}
    {%- set rows = '(select max(y) + 1 from ' ~ input ~ ')' -%}
    {{ last }} >= {{ rows }} * {{ band_start() }}
    and {{ first }} < {{ rows }} * {{ band_end() }}
{%- endmacro %}
