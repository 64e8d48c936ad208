{#-
    What each attention head does in a text, in a few numbers.

    tokens    relation made by text_insight_tokens()
    pattern   relation made by attention_pattern()
    -> one row a sequence and a head: (sequence_id, prompt_id, layer, head, entropy,
       mean_distance, first_token_share, previous_token_score, duplicate_token_score,
       induction_score)

    Each is a mean over queries: of the pattern's entropy in nats, of how far back it
    looks in tokens, of its weight on the first token. A score is the mean of the weight
    on certain keys, of the queries that have such keys, NULL where none has: on the
    token before; on earlier ones that are the same token; on those that came after the
    same token. The keys are the detection patterns of TransformerLens's
    head_detector.detect_head (Olsson et al. 2022, "In-context Learning and Induction
    Heads").
-#}
{% macro head_scores(tokens, pattern) -%}
with marked as (
    select
        pattern.*,
        key.position < query.position and key.token_id = query.token_id as is_duplicate,
        before_key.position < query.position and before_key.token_id = query.token_id
        as is_induction
    from {{ pattern }} as pattern
    inner join {{ tokens }} as query
        on pattern.sequence_id = query.sequence_id
        and pattern.query_position = query.position
    inner join {{ tokens }} as key
        on pattern.sequence_id = key.sequence_id
        and pattern.key_position = key.position
    left join {{ tokens }} as before_key
        on pattern.sequence_id = before_key.sequence_id
        and pattern.key_position - 1 = before_key.position
),

queries as (
    select
        marked.sequence_id,
        marked.prompt_id,
        marked.layer,
        marked.head,
        marked.query_position,
        -sum(marked.pattern * ln(marked.pattern)) as entropy,
        sum(marked.pattern * (marked.query_position - marked.key_position)) as distance,
        sum(marked.pattern) filter (where marked.key_position = 0) as on_first,
        sum(marked.pattern) filter (
            where marked.key_position = marked.query_position - 1
        ) as on_previous,
        sum(marked.pattern) filter (where marked.is_duplicate) as on_duplicates,
        sum(marked.pattern) filter (where marked.is_induction) as on_induction
    from marked
    group by
        marked.sequence_id,
        marked.prompt_id,
        marked.layer,
        marked.head,
        marked.query_position
)

select
    queries.sequence_id,
    queries.prompt_id,
    queries.layer,
    queries.head,
    avg(queries.entropy) as entropy,
    avg(queries.distance) as mean_distance,
    avg(queries.on_first) as first_token_share,
    avg(queries.on_previous) as previous_token_score,
    avg(queries.on_duplicates) as duplicate_token_score,
    avg(queries.on_induction) as induction_score
from queries
group by queries.sequence_id, queries.prompt_id, queries.layer, queries.head
order by queries.sequence_id, queries.layer, queries.head
{%- endmacro %}
