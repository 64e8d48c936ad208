{#-
    The attention weights of a head, from one place, are 0 or more and add up to 1.

    places   the columns that name head and place

    Fails with a row for each head and place where they do not.
-#}
{% test patterns_add_up(model, places) %}
{{ config(enabled=dbt_nn.is_tested()) }}
select
    {{ places | join(', ') }},
    sum(pattern::float8) as total
from {{ model }}
group by {{ places | join(', ') }}
having (
    abs(sum(pattern::float8) - 1) <= {{ dbt_nn.tolerance('attention') }}
    and min(pattern) >= 0
) is not true
{% endtest %}
