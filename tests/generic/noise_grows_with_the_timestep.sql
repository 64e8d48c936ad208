{#-
    A noise schedule has every timestep from 0 on, and less of the picture at each.

    Fails with a row for each timestep where it does not.
-#}
{% test noise_grows_with_the_timestep(model) %}
{{ config(enabled=dbt_nn.is_tested()) }}
select *
from (
    select
        timestep,
        beta,
        alpha_cumprod,
        lag(alpha_cumprod, 1, 1) over (order by timestep) as before,
        row_number() over (order by timestep) - 1 as expected_timestep
    from {{ model }}
) as schedule
where (
    timestep = expected_timestep
    and beta > 0
    and beta < 1
    and alpha_cumprod > 0
    and alpha_cumprod < before
) is not true
union all
select null, null, null, null, 0
where not exists (select from {{ model }})
{% endtest %}
