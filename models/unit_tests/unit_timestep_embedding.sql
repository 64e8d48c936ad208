with result as (
    {{ timestep_embedding(ref('unit_image_frontier'), ref('unit_config')) }}
)

select
    image_id,
    {{ rounded('activation') }} as activation
from result
