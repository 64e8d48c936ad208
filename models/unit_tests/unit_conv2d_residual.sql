with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ conv2d(
        ref('unit_image'),
        ref('unit_weights'),
        time_embedding=ref('unit_time_embedding'),
        residual=ref('unit_image_residual'),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
