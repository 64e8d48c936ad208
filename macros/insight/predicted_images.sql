{#-
    The picture that the network sees in each sample: what would be left if all the noise
    that it predicts were taken away at once, often called x0.

    samples     relation made by diffusion_samples(), completed by the loop
    timesteps   relation made by diffusion_timesteps()
    options     see image_insight_options()
    -> (image_id, step, timestep, y, x, channels vector(in_channels) around -1..1); step
       and timestep are those of the sample that it is predicted from

    Behaves as pred_original_sample of step() of diffusers' DDPMScheduler and
    DDIMScheduler.
-#}
{% macro predicted_images(samples, timesteps, options) -%}
select
    outcome.image_id,
    timesteps.step,
    timesteps.timestep,
    outcome.y,
    outcome.x,
    outcome.pred_original_sample as channels
from {{ samples }} as outcome
inner join {{ timesteps }} as timesteps
    on outcome.image_id = timesteps.image_id
    and outcome.step = timesteps.step + 1
where {{ dbt_nn.is_looked_at('outcome.image_id', options) }}
{%- endmacro %}
