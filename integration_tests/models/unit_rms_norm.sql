with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ dbt_nn.rms_norm(
        ref('unit_input'),
        ref('unit_norm'),
        epsilon=var('unit_epsilon', 0.00001),
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
