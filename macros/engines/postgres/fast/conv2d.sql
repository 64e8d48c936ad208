{#-
    conv2d() by im2col without a join: two window passes, along x and then along y, put
    the nine neighbours of a place side by side. That takes 12 of the 50 ms of 64 to 64
    channels at 64 x 64; what follows is the product of linear().
-#}

{% macro postgres__conv2d(input, weights, stride, padding, time_embedding, residual) -%}
{#- To put neighbours side by side takes as long as some 60,000 multiply-adds a place. -#}
{{ dbt_nn.parallel_matmul(input, weights, place_work=60000, stride=stride) }}
with in_row as (
    select
        image_id,
        y,
        x,
        {{ dbt_nn.with_neighbours('activation', 'across', 'vector_dims(activation)') }} as activation
    from {{ dbt_nn.at_frontier(input, 'x') }}
    where {{ dbt_nn.in_row_band('y + 1', 'y - 1', input) }}
    window across as (partition by image_id, y order by x)
),

patches as (
    select
        image_id,
        y,
        x,
        {{ dbt_nn.with_neighbours('activation', 'down', 'vector_dims(activation)') }} as activation
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
    where {{ dbt_nn.in_row_band('y', 'y', input) }}
    {%- if stride > 1 %}
        and y % {{ stride }} = 1 - {{ padding }}
        and x % {{ stride }} = 1 - {{ padding }}
    {%- endif %}
),

product as (
    {{ dbt_nn.matmul_rows('inputs', weights) }}
)

select
    {{ dbt_nn.place('product') }},
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
cross join {{ dbt_nn.at_place(residual, 'residual', 'product') }}
{%- endif %}
{%- endmacro %}


{#- A vector(n), the one before it and the one after it in a window, side by
    side; zeros where there is none. -#}
{% macro with_neighbours(x, window, n) -%}
    coalesce(lag({{ x }}) over {{ window }}, {{ dbt_nn.broadcast('0', n) }})
        || {{ x }}
        || coalesce(lead({{ x }}) over {{ window }}, {{ dbt_nn.broadcast('0', n) }})
{%- endmacro %}


{#- A condition: some of an image's rows `first` to `last` belong to the band. Bands
    are of rows side by side, since each needs the row above and below it as well. -#}
{% macro in_row_band(last, first, input) -%}
    {%- set rows = '(select max(y) + 1 from ' ~ input ~ ')' -%}
    {{ last }} >= {{ rows }} * {{ dbt_nn.band_start() }}
    and {{ first }} < {{ rows }} * {{ dbt_nn.band_end() }}
{%- endmacro %}
