-- A layer's table, [image, h, w, n].
select
    null::integer as image_id,
    null::integer as y,
    null::integer as x,
    null::vector as activation
