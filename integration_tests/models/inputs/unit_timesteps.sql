-- The steps of each image.
select
    null::integer as image_id,
    null::integer as step,
    null::integer as timestep,
    null::integer as previous_timestep,
    null::float8 as alpha_cumprod,
    null::float8 as previous_alpha_cumprod,
    null::float8 as original_weight,
    null::float8 as sample_weight,
    null::float8 as epsilon_weight,
    null::float8 as sigma
