with places as (
    select image_id from {{ ref('unit_time_embedding') }}
),

result as (
    {{ dbt_nn.activation_layer(
        ref('unit_time_embedding'), var('unit_activation', 'silu')
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
