with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.lm_head(
        ref('unit_input'),
        ref('unit_weights'),
        all_positions=var('unit_all_positions', false),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.logits') }} as logits
from result
