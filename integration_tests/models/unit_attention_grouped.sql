with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.attention(
        ref('unit_query'),
        ref('unit_key'),
        ref('unit_value'),
        heads=2,
        causal=true,
        blocks=ref('unit_blocks'),
        kv_heads=1,
        window=var('unit_window', none),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
