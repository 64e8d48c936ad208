-- A layer's table, [places, n].
select
    null::integer as sequence_id,
    null::integer as position,
    null::vector as activation
