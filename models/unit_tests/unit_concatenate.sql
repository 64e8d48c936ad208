with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ concatenate(ref('unit_image'), ref('unit_image_residual')) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
