with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ lm_head(
        ref('unit_input'),
        ref('unit_weights'),
        all_positions=var('unit_all_positions', false),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.logits') }} as logits
from result
