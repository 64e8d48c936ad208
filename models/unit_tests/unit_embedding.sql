with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ embedding(
        'places',
        ref('unit_weights'),
        ref('unit_position_weights'),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
