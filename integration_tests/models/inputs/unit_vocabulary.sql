-- A checkpoint's vocabulary.
select
    null::integer as token_id,
    null::bytea as token,
    null::boolean as special
