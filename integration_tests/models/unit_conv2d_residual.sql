with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ dbt_nn.conv2d(
        ref('unit_image'),
        ref('unit_weights'),
        time_embedding=ref('unit_time_embedding'),
        residual=ref('unit_image_residual'),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
