-- A checkpoint's byte pair merges.
select
    null::integer as left_id,
    null::integer as right_id,
    null::integer as rank,
    null::integer as token_id
