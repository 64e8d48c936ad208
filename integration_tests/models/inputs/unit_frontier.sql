-- Places to compute, with their tokens.
select
    null::integer as sequence_id,
    null::integer as position,
    null::integer as token_id
