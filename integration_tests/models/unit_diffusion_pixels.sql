with pixels as (
    {{ dbt_nn.diffusion_pixels(ref('unit_images')) }}
)

select
    image_id,
    step,
    timestep,
    y,
    x,
    pixel::text as pixel
from pixels
