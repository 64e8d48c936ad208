{#-
    Where a place of an image looks: its attention weights in each layer and head.

    layers      an attention's name, its query and its key, relations [image, h, w, n]
    frontier    relation made by diffusion_frontier(), [image, height, width]
    head_size   scalar SQL expression; NULL: one head
    options     see image_insight_options(): the place is a pixel of the image, and in a
                layer the place that covers it
    -> (layer_name, image_id, head, query_y, query_x, key_y, key_x, pattern); the
       patterns of a head add up to 1

    Vaswani et al. 2017: the softmax of attention(), see there.
-#}
{% macro place_attention(layers, frontier, head_size, options) -%}
{%- for name, query, key in layers %}
{{ 'union all' if not loop.first }}
select
    '{{ name }}' as layer_name,
    found.*
from (
    {{ dbt_nn.attention_of_place(query, key, frontier, head_size, options) | indent(4) }}
) as found
{%- endfor %}
{%- endmacro %}


{#- The same of one layer. -#}
{% macro attention_of_place(query, key, frontier, head_size, options) -%}
{%- set place = dbt_nn.image_insight_options(options).place -%}
with sizes as (
    select
        layer.height as layer_height,
        layer.width as layer_width,
        image.height,
        image.width
    from (select max(y) + 1 as height, max(x) + 1 as width from {{ key }}) as layer
    cross join (select max(y) + 1 as height, max(x) + 1 as width from {{ frontier }}) as image
),

chosen as (
    select
        {{ place[0] if place else 'height / 2' }} * layer_height / height as y,
        {{ place[1] if place else 'width / 2' }} * layer_width / width as x
    from sizes
),

scores as (
    select
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
    from {{ query }} as q
    inner join chosen using (y, x)
    inner join {{ key }} as k using (image_id)
    cross join lateral (
        select
            number,
            vector_dims(q.activation) / n.heads as size
        from (select {{ dbt_nn.head_count('q.activation', none, head_size) }} as heads) as n
        cross join lateral generate_series(0, n.heads - 1) as number
    ) as head
    where {{ dbt_nn.is_looked_at('q.image_id', options) }}
),

weights as (
    select
        *,
        {{ dbt_nn.bounded_exp('score - max(score) over one_head') }} as weight
    from scores
    window one_head as (partition by image_id, head)
)

select
    image_id,
    head,
    query_y,
    query_x,
    key_y,
    key_x,
    (weight / sum(weight) over (partition by image_id, head))::real as pattern
from weights
{%- endmacro %}
