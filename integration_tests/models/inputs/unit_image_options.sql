-- Images to draw, with any options.
select
    null::integer as image_id
