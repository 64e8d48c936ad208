{#-
    Each query of each attention head has a weight on every key up to its own position,
    none below 0, and they add up to 1.

    tokens   relation made by text_insight_tokens()

    Fails with a row for each query and head: (sequence_id, layer, head, query_position,
    how many keys it has, the sum and the smallest of its weights). The var
    tolerance_probability says how much the sum may be off.
-#}
{% test patterns_are_distributions(model, tokens) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with heads as (
    select distinct layer, head from {{ model }}
)

select
    tokens.sequence_id,
    heads.layer,
    heads.head,
    tokens.position as query_position,
    count(pattern.pattern) as keys,
    sum(pattern.pattern) as sum_of_weights,
    min(pattern.pattern) as smallest
from {{ tokens }} as tokens
cross join heads
left join {{ model }} as pattern
    on
        tokens.sequence_id = pattern.sequence_id
        and tokens.position = pattern.query_position
        and heads.layer = pattern.layer
        and heads.head = pattern.head
group by tokens.sequence_id, heads.layer, heads.head, tokens.position
having
    count(distinct pattern.key_position) <> tokens.position + 1
    or count(pattern.pattern) <> tokens.position + 1
    or abs(sum(pattern.pattern) - 1) > {{ dbt_nn.tolerance('probability') }}
    or min(pattern.pattern) < 0
{% endtest %}
