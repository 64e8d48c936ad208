with images as (
    {{ dbt_nn.diffusion_images(ref('unit_samples'), ref('unit_timesteps'), 'denoised') }}
)

select
    image_id,
    step,
    timestep,
    y,
    x,
    {{ dbt_nn.rounded('channels') }} as channels
from images
