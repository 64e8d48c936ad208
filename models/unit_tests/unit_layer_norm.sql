with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ layer_norm(
        ref('unit_input'),
        ref('unit_norm'),
        epsilon=var('unit_epsilon', 0.00001),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
