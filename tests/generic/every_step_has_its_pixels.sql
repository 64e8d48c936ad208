{#-
    Every image that was asked for is there at each step from the noise to the
    picture, with as many pixels at each, all in 0..255.

    requests   relation made by diffusion_requests()

    Fails with a row for each image and step where that is not so.
-#}
{% test every_step_has_its_pixels(model, requests) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with steps as (
    select
        image_id,
        step,
        count(*) as pixels,
        bool_and(
            coalesce(0 <= all(pixel) and 255 >= all(pixel), false)
        ) as in_range
    from {{ model }}
    group by image_id, step
)

select
    image_id,
    step,
    steps.pixels,
    steps.in_range
from {{ requests }} as requests
cross join generate_series(0, requests.num_inference_steps) as step
full outer join steps using (image_id, step)
where steps.pixels is null
    or requests.image_id is null
    or not steps.in_range
    or steps.pixels <> (select max(pixels) from steps)
{% endtest %}
