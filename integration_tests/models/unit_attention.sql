with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.attention(
        ref('unit_query'),
        ref('unit_key'),
        ref('unit_value'),
        heads=var('unit_heads', 1),
        causal=true,
        blocks=ref('unit_blocks'),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
