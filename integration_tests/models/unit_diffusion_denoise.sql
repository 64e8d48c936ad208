with denoised as (
    {{ dbt_nn.diffusion_denoise(
        ref('unit_image'),
        ref('unit_image_frontier'),
        ref('unit_image_requests'),
        ref('unit_timesteps'),
        ref('unit_scheduler'),
    ) }}
)

select
    image_id,
    step,
    y,
    x,
    {{ dbt_nn.rounded('activation') }} as activation,
    {{ dbt_nn.rounded('pred_original_sample') }} as pred_original_sample
from denoised
