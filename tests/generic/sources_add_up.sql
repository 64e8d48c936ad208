{#-
    What a token owes to all places up to its own is what the same heads add to its
    logit.

    attribution   relation made by logit_attribution()
    pattern       relation made by attention_pattern(): which heads they are

    Fails with a row for each place: (sequence_id, position, the sum over the places, the
    sum over the heads). The var tolerance_attribution says how much they may differ, of
    the larger of 1 and the sum.
-#}
{% test sources_add_up(model, attribution, pattern) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with chosen as (
    select distinct layer, head from {{ pattern }}
),

of_heads as (
    select
        attribution.sequence_id,
        attribution.position,
        sum(attribution.logit) as total
    from {{ attribution }} as attribution
    inner join chosen
        on
            attribution.layer = chosen.layer
            and attribution.head = chosen.head
    group by attribution.sequence_id, attribution.position
),

of_sources as (
    select
        sequence_id,
        position,
        sum(logit) as total
    from {{ model }}
    group by sequence_id, position
)

select
    sequence_id,
    position,
    of_sources.total as sum_over_places,
    of_heads.total as sum_over_heads
from of_heads
full join of_sources using (sequence_id, position)
where
    of_sources.total is null
    or of_heads.total is null
    or abs(of_sources.total - of_heads.total) > {{ dbt_nn.tolerance('attribution') }}
    * greatest(1, abs(of_heads.total))
{% endtest %}
