-- Keys and values as attention_blocks() makes them.
select
    null::integer as sequence_id,
    null::integer as head,
    null::integer as positions,
    null::integer as part,
    null::integer as block,
    null::vector[] as x
