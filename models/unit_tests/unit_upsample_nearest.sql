with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ upsample_nearest(ref('unit_image')) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
