with samples as (
    {{ dbt_nn.diffusion_samples(
        ref('unit_image_requests'),
        ref('unit_config'),
    ) }}
)

select
    image_id,
    step,
    y,
    x,
    {{ dbt_nn.rounded('activation') }} as activation
from samples
