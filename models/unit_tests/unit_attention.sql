with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ attention(
        ref('unit_query'),
        ref('unit_key'),
        ref('unit_value'),
        ref('unit_blocks'),
        heads=var('unit_heads', 1),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
