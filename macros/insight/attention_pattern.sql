{#-
    Where each attention head looks: softmax(Q K^T / sqrt(d)), computed once more from
    the queries and keys.

    tokens    relation made by text_insight_tokens()
    queries   [places, n] each: relations of layers, the queries of each block
    keys      likewise, the keys
    heads     scalar SQL expression; d = n / heads
    options   see insight_options()
    -> one row a query and a key up to its own position: (sequence_id, prompt_id, layer,
       head, query_position, key_position, attn_score, pattern)

    Behaves as TransformerLens's hook_attn_scores and hook_pattern, and pattern as the
    attentions of transformers' output_attentions; causal.
-#}
{% macro attention_pattern(tokens, queries, keys, heads, options) -%}
    {%- set options = dbt_nn.insight_options(options) -%}
with places as (
    {%- for layer in dbt_nn.looked_at_layers(queries | length, options) %}
    {{ 'union all' if not loop.first }}
    select
        {{ layer }} as layer,
        tokens.sequence_id,
        tokens.prompt_id,
        tokens.position,
        q.activation as query,
        k.activation as key
    from {{ tokens }} as tokens
    inner join {{ queries[layer] }} as q using (sequence_id, position)
    inner join {{ keys[layer] }} as k using (sequence_id, position)
    {%- endfor %}
),

heads as materialized (
    select
        places.layer,
        places.sequence_id,
        places.prompt_id,
        places.position,
        head.number as head,
        head.size,
        {{ dbt_nn.slice('places.query', 'head.size * head.number', 'head.size') }} as query,
        {{ dbt_nn.slice('places.key', 'head.size * head.number', 'head.size') }} as key
    from places
    cross join lateral (
        select
            head.number,
            vector_dims(places.query) / {{ heads }} as size
        from {{ dbt_nn.looked_at_heads(heads, options) | indent(8) }}
    ) as head
),

scores as (
    select
        q.sequence_id,
        q.prompt_id,
        q.layer,
        q.head,
        q.position as query_position,
        k.position as key_position,
        {{ dbt_nn.dot('q.query', 'k.key') }} / sqrt(q.size) as attn_score
    from heads as q
    inner join heads as k
        on q.layer = k.layer
        and q.head = k.head
        and q.sequence_id = k.sequence_id
        and q.position >= k.position
),

{# exp(score) / their sum is the softmax; with the largest subtracted, none overflows #}
weights as (
    select
        scores.*,
        {{ dbt_nn.bounded_exp('scores.attn_score - max(scores.attn_score) over one_query') }}
        as weight
    from scores
    window one_query as (
        partition by
            scores.layer, scores.head, scores.sequence_id, scores.query_position
    )
)

select
    weights.sequence_id,
    weights.prompt_id,
    weights.layer,
    weights.head,
    weights.query_position,
    weights.key_position,
    weights.attn_score,
    weights.weight / sum(weights.weight) over (
        partition by
            weights.layer, weights.head, weights.sequence_id, weights.query_position
    ) as pattern
from weights
{%- endmacro %}
