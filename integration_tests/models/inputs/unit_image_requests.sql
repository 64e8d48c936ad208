-- Images with all their options.
select
    null::integer as image_id,
    null::text as scheduler,
    null::integer as num_inference_steps,
    null::float8 as eta,
    null::bigint as seed,
    null::uuid as request
