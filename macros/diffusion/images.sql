{#-
    Every image at every step, from the noise (step 0) to the picture.

    samples     relation made by diffusion_samples(), completed by the loop
    timesteps   relation made by diffusion_timesteps()
    denoised    relation made by diffusion_denoise(): the loop
    -> (image_id, step, timestep, y, x, channels vector(in_channels) around
       -1..1); timestep is that of the sample's noise, -1 for the picture
-#}
{% macro diffusion_images(samples, timesteps, denoised) -%}
-- after {{ denoised }}, which owns the loop
select
    samples.image_id,
    samples.step,
    coalesce(timesteps.timestep, -1) as timestep,
    samples.y,
    samples.x,
    samples.activation as channels
from {{ samples }} as samples
left join {{ timesteps }} as timesteps using (image_id, step)
{%- endmacro %}


{#-
    The pixels of every image at every step.

    images   relation made by diffusion_images()
    -> (image_id, step, timestep, y, x, pixel smallint[channels] in 0..255)

    Behaves as the end of diffusers' DDPMPipeline: (x / 2 + 0.5), clamped, times
    255 and rounded.
-#}
{% macro diffusion_pixels(images) -%}
select
    images.image_id,
    images.step,
    images.timestep,
    images.y,
    images.x,
    (
        select array_agg(
            round(greatest(least(x / 2 + 0.5, 1), 0) * 255)::smallint
        )
        from (select unnest(images.channels::real[])::float8 as x) as channel
    ) as pixel
from {{ images }} as images
{%- endmacro %}
