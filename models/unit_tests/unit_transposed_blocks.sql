with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ transposed_blocks(ref('unit_value')) }}
)

select
    sequence_id,
    block,
    feature,
    {{ elements('activation') }} as positions,
    {{ rounded('subvector(activation, 1, 3)') }} as first_values,
    {{ rounded('subvector(activation, 64, 1)') }} as last_value
from result
