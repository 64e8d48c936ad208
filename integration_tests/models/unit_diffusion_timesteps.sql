with timesteps as (
    {{ dbt_nn.diffusion_timesteps(
        ref('unit_image_requests'),
        ref('unit_noise_schedule'),
        ref('unit_scheduler'),
    ) }}
)

select
    image_id,
    step,
    timestep,
    previous_timestep,
    round(original_weight::numeric, 6)::float8 as original_weight,
    round(sample_weight::numeric, 6)::float8 as sample_weight,
    round(epsilon_weight::numeric, 6)::float8 as epsilon_weight,
    round(sigma::numeric, 6)::float8 as sigma
from timesteps
