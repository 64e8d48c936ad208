-- Transposed values, [blocks, n, attention_block()].
select
    null::integer as sequence_id,
    null::integer as block,
    null::integer as feature,
    null::vector as activation
