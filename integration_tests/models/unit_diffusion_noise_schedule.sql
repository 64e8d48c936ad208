with schedule as (
    {{ dbt_nn.diffusion_noise_schedule(ref('unit_scheduler')) }}
)

select
    timestep,
    round(beta::numeric, 6)::float8 as beta,
    round(alpha_cumprod::numeric, 6)::float8 as alpha_cumprod
from schedule
