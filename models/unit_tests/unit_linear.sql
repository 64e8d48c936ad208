with places as (
    select * from {{ ref('unit_frontier') }}
),

result as (
    {{ linear(
        ref('unit_input'),
        ref('unit_weights'),
        activation=var('unit_activation', none),
    ) }}
)

select
    {{ place('result') }},
    {{ rounded('result.activation') }} as activation
from result
