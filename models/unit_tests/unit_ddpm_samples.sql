with samples as (
    {{ ddpm_samples(
        ref('unit_image_requests'),
        ref('unit_config'),
    ) }}
)

select
    image_id,
    step,
    y,
    x,
    {{ rounded('activation') }} as activation
from samples
