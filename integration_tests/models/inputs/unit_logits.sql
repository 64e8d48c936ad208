-- Logits with a row's generation options, [vocabulary].
select
    null::text as name,
    null::integer as sequence_id,
    null::integer as position,
    null::integer as prompt_id,
    null::real[] as logits,
    null::boolean as do_sample,
    null::float8 as temperature,
    null::integer as top_k,
    null::float8 as top_p,
    null::float8 as min_p,
    null::float8 as repetition_penalty,
    null::bigint as seed
