with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ dbt_nn.conv2d(
        ref('unit_image'),
        ref('unit_weights'),
        kernel_size=var('unit_kernel_size', 3),
        stride=var('unit_stride', 1),
        padding=var('unit_padding', 1),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
