with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ dbt_nn.upsample_nearest(ref('unit_image')) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
