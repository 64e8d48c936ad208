with result as (
    {{ dbt_nn.timestep_embedding(ref('unit_image_frontier'), ref('unit_config')) }}
)

select
    image_id,
    {{ dbt_nn.rounded('activation') }} as activation
from result
