{#-
    What the parts of a network add to the logit of the token that came, less what they
    add to that of the likeliest other one, is the difference of the two tokens'
    log-probabilities, and every part is there.

    lens     relation made by logit_lens(), whose final_post has those
    tokens   relation made by text_insight_tokens()

    Fails with a row for each place: (sequence_id, position, how many labels it has and
    should have, the sum, what it should be). The var tolerance_attribution says how much
    it may be off, of the larger of 1 and the difference. Where the likeliest other
    token is not among the lens's top_k, there is nothing to compare the sum with.
-#}
{% test attributions_add_up(model, lens, tokens) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with size as (
    select 4 + (max(layer) + 1) * (max(head) + 2) as labels from {{ model }}
),

found as (
    select
        sequence_id,
        position,
        count(distinct label) as labels,
        sum(logit_difference) as total
    from {{ model }}
    group by sequence_id, position
),

expected as (
    select
        tokens.sequence_id,
        tokens.position,
        final.next_token_logprob - (
            select max((other.value ->> 'logprob')::float8)
            from jsonb_array_elements(final.alternatives) as other (value)
            where (other.value ->> 'token_id')::integer <> tokens.next_token_id
        ) as difference
    from {{ tokens }} as tokens
    inner join {{ lens }} as final
        on
            tokens.sequence_id = final.sequence_id
            and tokens.position = final.position
            and final.label = 'final_post'
    where tokens.next_token_id is not null
)

select
    expected.sequence_id,
    expected.position,
    found.labels,
    size.labels as expected_labels,
    found.total,
    expected.difference as expected_total
from expected
cross join size
left join found
    on
        expected.sequence_id = found.sequence_id
        and expected.position = found.position
where
    found.labels is distinct from size.labels
    or abs(found.total - expected.difference) > {{ dbt_nn.tolerance('attribution') }}
    * greatest(1, abs(expected.difference))
{% endtest %}
