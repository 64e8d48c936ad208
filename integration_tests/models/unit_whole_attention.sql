with places as (
    select sequence_id, position from {{ ref('unit_query') }}
),

result as (
    {{ dbt_nn.attention(
        ref('unit_query'),
        ref('unit_key'),
        ref('unit_value'),
        heads=var('unit_heads', 1),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
