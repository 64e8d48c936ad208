with frontier as (
    {{ ddpm_frontier(
        ref('unit_samples'),
        ref('unit_image_requests'),
        ref('unit_timesteps'),
        ref('unit_config'),
    ) }}
)

select
    image_id,
    step,
    timestep,
    y,
    x,
    {{ rounded('activation') }} as activation,
    {{ rounded('sample') }} as sample
from frontier
