with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.attention_blocks(
        ref('unit_key'), ref('unit_value'), heads=var('unit_heads', 1)
    ) }}
)

select
    result.sequence_id,
    result.head,
    result.positions,
    result.part,
    result.block,
    cardinality(result.x) as vectors,
    {{ dbt_nn.elements('result.x[1]') }} as length,
    {{ dbt_nn.rounded('subvector(result.x[1], 1, 2)') }} as first_two,
    {{ dbt_nn.rounded(
        'subvector(result.x[cardinality(result.x)], vector_dims(result.x[1]), 1)'
    ) }} as last_one
from result
