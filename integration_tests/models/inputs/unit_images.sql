-- Samples of every step with their timestep, [steps, h, w, channels].
select
    null::integer as image_id,
    null::integer as step,
    null::integer as timestep,
    null::integer as y,
    null::integer as x,
    null::vector as channels
