with places as (
    select image_id, y, x from {{ ref('unit_image_query') }}
),

result as (
    {{ dbt_nn.attention(
        ref('unit_image_query'),
        ref('unit_image_key'),
        ref('unit_image_value'),
        head_size=var('unit_head_size', 'null'),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
