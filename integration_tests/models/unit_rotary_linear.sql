with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.rotary_linear(
        ref('unit_input'),
        ref('unit_weights'),
        ref('unit_residual'),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
