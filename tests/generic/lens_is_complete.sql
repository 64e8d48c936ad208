{#-
    The logit lens has every place at each of its points once, and ends in the network's
    own distribution; where the likeliest token came, it is of rank 1.

    tokens   relation made by text_insight_tokens()

    Fails with a row for each place, label and problem: (sequence_id, position, label,
    problem). The var tolerance_probability says how much numbers may differ.
-#}
{% test lens_is_complete(model, tokens) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with points as (
    select label from {{ model }}
    union
    select 'final_post'
),

places as (
    select
        tokens.sequence_id,
        tokens.position,
        tokens.next_token_id,
        points.label
    from {{ tokens }} as tokens
    cross join points
),

compared as (
    select
        places.sequence_id,
        places.position,
        places.label,
        case
            when count(lens.label) <> 1 then format('is there %s times', count(lens.label))
            when (max(lens.next_token_rank) is null) <> (places.next_token_id is null)
                then 'has a rank without a next token, or none with one'
            when max(lens.next_token_logprob) > {{ dbt_nn.tolerance('probability') }}
                then 'has a probability above 1'
            when
                places.label = 'final_post'
                and not max(lens.kl_divergence) <= {{ dbt_nn.tolerance('probability') }}
                then 'is another distribution than the network''s'
            when
                (jsonb_agg(lens.alternatives) -> 0 -> 0 ->> 'token_id')::integer
                = places.next_token_id
                and (
                    max(lens.next_token_rank) <> 1
                    or abs(
                        max(lens.next_token_logprob)
                        - (jsonb_agg(lens.alternatives) -> 0 -> 0 ->> 'logprob')::float8
                    ) > {{ dbt_nn.tolerance('probability') }}
                )
                then 'has another rank or logprob than its likeliest token'
        end as problem
    from places
    left join {{ model }} as lens
        on
            places.sequence_id = lens.sequence_id
            and places.position = lens.position
            and places.label = lens.label
    group by
        places.sequence_id, places.position, places.next_token_id, places.label
)

select *
from compared
where problem is not null
{% endtest %}
