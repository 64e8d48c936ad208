{#-
    Where a place of an image looks: its attention weights in each layer and head.

    layers      of each attention its name, its query and its key, relations
                [image, h, w, n]
    frontier    relation made by diffusion_frontier(), [image, height, width]
    head_size   scalar SQL expression; NULL: one head
    options     see image_insight_options(): the place is a pixel of the image, and in a
                layer the place that covers it
    -> (layer_name, image_id, head, query_y, query_x, key_y, key_x, pattern); the
       patterns of a head add up to 1

    Vaswani et al. 2017: the softmax of attention(), see there.
-#}
{% macro place_attention(layers, frontier, head_size, options) -%}
{%- set place = dbt_nn.image_insight_options(options).place -%}
{%- set names = layers | map(attribute=0) | list -%}
with queries as (
    {{ dbt_nn.places_of_layers(layers | map(attribute=1), options, names) | indent(4) }}
),

keys as materialized (
    {{ dbt_nn.places_of_layers(layers | map(attribute=2), options, names) | indent(4) }}
),

image as (
    select
        max(y) + 1 as height,
        max(x) + 1 as width
    from {{ frontier }}
),

{# of each layer the place that covers the pixel #}
chosen as (
    select
        layer.layer_name,
        {{ place[0] if place else 'image.height / 2' }} * layer.height / image.height as y,
        {{ place[1] if place else 'image.width / 2' }} * layer.width / image.width as x
    from (
        select
            layer_name,
            max(y) + 1 as height,
            max(x) + 1 as width
        from keys
        group by layer_name
    ) as layer
    cross join image
),

scores as (
    select
        q.layer_name,
        q.image_id,
        head.number as head,
        q.y as query_y,
        q.x as query_x,
        k.y as key_y,
        k.x as key_x,
        {{ dbt_nn.dot(
            dbt_nn.slice('q.activation', 'head.size * head.number', 'head.size'),
            dbt_nn.slice('k.activation', 'head.size * head.number', 'head.size'),
        ) }} / sqrt(head.size) as score
    from queries as q
    inner join chosen using (layer_name, y, x)
    inner join keys as k using (layer_name, image_id)
    cross join lateral (
        select
            number,
            vector_dims(q.activation) / n.heads as size
        from (select {{ dbt_nn.head_count('q.activation', none, head_size) }} as heads) as n
        cross join lateral generate_series(0, n.heads - 1) as number
    ) as head
),

weights as (
    select
        *,
        {{ dbt_nn.bounded_exp('score - max(score) over one_head') }} as weight
    from scores
    window one_head as (partition by layer_name, image_id, head)
)

select
    layer_name,
    image_id,
    head,
    query_y,
    query_x,
    key_y,
    key_x,
    (weight / sum(weight) over (partition by layer_name, image_id, head))::real as pattern
from weights
{%- endmacro %}
