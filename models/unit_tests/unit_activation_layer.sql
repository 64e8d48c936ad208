with places as (
    select image_id from {{ ref('unit_time_embedding') }}
),

result as (
    {{ activation_layer(
        ref('unit_time_embedding'), var('unit_activation', 'silu')
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
