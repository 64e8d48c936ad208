with places as (
    select image_id, y, x from {{ ref('unit_image') }}
),

result as (
    {{ dbt_nn.group_norm(
        ref('unit_image'),
        ref('unit_norm'),
        groups=var('unit_groups', 2),
        epsilon=var('unit_epsilon', 0.00001),
        activation=var('unit_activation', none),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
