-- A layer's table, [image, n].
select
    null::integer as image_id,
    null::vector as activation
