with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.embedding(
        'places',
        ref('unit_weights'),
        ref('unit_position_weights'),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
