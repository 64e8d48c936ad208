with frontier as (
    {{ dbt_nn.diffusion_frontier(
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
    {{ dbt_nn.rounded('activation') }} as activation,
    {{ dbt_nn.rounded('sample') }} as sample
from frontier
