-- Tokens of the sequences, [places].
select
    null::integer as sequence_id,
    null::integer as position,
    null::integer as token_id,
    null::integer as step
