with images as (
    {{ ddpm_images(ref('unit_samples'), ref('unit_timesteps'), 'denoised') }}
)

select
    image_id,
    step,
    timestep,
    y,
    x,
    {{ rounded('channels') }} as channels
from images
