{#-
    The places that the network computes now: the tokens of the newest step.
    A layer that is built anew computes all of them (layer.sql says so by the
    setting dbt_nn.all_places).

    tokens   relation made by text_tokens()
    -> (sequence_id, position, token_id, step)
-#}
{% macro text_frontier(tokens) -%}
select
    sequence_id,
    position,
    token_id,
    step
from {{ tokens }}
where step >= case
    when current_setting('dbt_nn.all_places', true) = 'true' then 0
    else (select max(step) from {{ tokens }})
end
{%- endmacro %}
