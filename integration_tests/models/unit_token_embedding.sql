with result as (
    {{ dbt_nn.embedding(ref('unit_frontier'), ref('unit_weights')) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
