-- Samples of every step, [steps, h, w, channels].
select
    null::integer as image_id,
    null::integer as step,
    null::integer as y,
    null::integer as x,
    null::vector as activation,
    null::uuid as request
