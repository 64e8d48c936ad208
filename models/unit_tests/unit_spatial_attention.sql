with places as (
    select image_id, y, x from {{ ref('unit_image_query') }}
),

result as (
    {{ spatial_attention(
        ref('unit_image_query'),
        ref('unit_image_key'),
        ref('unit_image_value'),
        head_size=var('unit_head_size', 'null'),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
