-- Samples to denoise, [image, h, w, channels].
select
    null::integer as image_id,
    null::integer as step,
    null::integer as timestep,
    null::integer as y,
    null::integer as x,
    null::vector as activation,
    null::vector as sample
