-- Texts to encode.
select
    null::integer as sequence_id,
    null::text as prompt
