{#-
    An image layer has one row for each place of every image that was denoised
    last, no others, and in each a value that is whole.

    denoised   relation made by diffusion_denoise()
    halvings   how often the layer's height and width were halved; none for one
               row an image

    Fails with a row for each place that is missing, or too many, or whose value
    is NULL or not as wide as most: (layer, place, problem). pgvector lets no NaN
    or infinity into a vector.
-#}
{% test images_are_complete(model, denoised, halvings=none) %}
{{ config(enabled=dbt_nn.is_tested()) }}
{%- set places = ['image_id'] if halvings is none else ['image_id', 'y', 'x'] %}
with places as (
    {%- if halvings is none %}
    select distinct image_id from {{ denoised }}
    {%- else %}
    select
        image_id,
        y / {{ 2 ** halvings }} as y,
        x / {{ 2 ** halvings }} as x
    from {{ denoised }}
    where y % {{ 2 ** halvings }} = 0 and x % {{ 2 ** halvings }} = 0
    {%- endif %}
),

usual as (
    select mode() within group (order by vector_dims(activation)) as width
    from {{ model }}
),

problems as (
    select
        {{ places | join(', ') }},
        case
            when places.image_id is null then 'is no place of the network'
            when model.image_id is null then 'is missing'
            when model.activation is null then 'is NULL'
            when vector_dims(model.activation) <> usual.width
                then format(
                    'has %s channels, not %s',
                    vector_dims(model.activation), usual.width
                )
        end as problem
    from places
    full outer join {{ model }} as model using ({{ places | join(', ') }})
    cross join usual
)

select
    '{{ model.identifier }}' as layer,
    problems.*
from problems
where problem is not null
order by {{ places | join(', ') }}
{% endtest %}
