{#-
    Nearest-neighbour upsampling of images by two: each place becomes four.

    input   [image, h, w, n]   relation of a layer
    -> [image, 2h, 2w, n]

    Behaves as torch.nn.functional.interpolate(scale_factor=2, mode='nearest'),
    the first half of diffusers' Upsample2D.
-#}
{% macro upsample_nearest(input) -%}
select
    x.image_id,
    x.y * 2 + down.i as y,
    x.x * 2 + across.i as x,
    x.activation
from {{ dbt_nn.at_frontier(input, 'x') }}
cross join generate_series(0, 1) as down (i)
cross join generate_series(0, 1) as across (i)
{%- endmacro %}


{#-
    The channels of two layers side by side at each place: a skip connection.

    left    [places, n]   relation of a layer
    right   [places, m]   relation of a layer
    -> [places, n + m]

    Behaves as torch.cat((left, right), dim=1).
-#}
{% macro concatenate(left, right) -%}
select
    {{ dbt_nn.place('x') }},
    x.activation || skip.activation as activation
from {{ dbt_nn.at_frontier(left, 'x') }}
inner join {{ right }} as skip using ({{ dbt_nn.place_columns() | join(', ') }})
{%- endmacro %}
