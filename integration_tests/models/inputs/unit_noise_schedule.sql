-- The noise of each timestep.
select
    null::integer as timestep,
    null::float8 as beta,
    null::float8 as alpha_cumprod
