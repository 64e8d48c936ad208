{#-
    Causal self-attention with many heads over the frontier:
    softmax(Q K^T / sqrt(d)) V, each query over the keys up to its position.

    query, key, value   [places, n]   relations of layers; the key and value
                                      tables are the KV cache
    heads               scalar SQL expression; d = n / heads
    -> [places, n]      the heads side by side

    Vaswani et al. 2017; behaves as transformers' GPT2Attention without its
    projections.
-#}
{% macro attention(query, key, value, heads) -%}
    {{ return(adapter.dispatch('attention', 'dbt_nn')(query, key, value, heads)) }}
{%- endmacro %}


{% macro postgres__attention(query, key, value, heads) -%}
with queries as materialized (
    select
        x.sequence_id,
        x.position,
        head.size,
        head.size * head.number + 1 as start,
        subvector(
            x.activation, head.size * head.number + 1, head.size
        ) as activation
    from {{ at_frontier(query, 'x') }}
    cross join lateral (
        select
            number,
            vector_dims(x.activation) / {{ heads }} as size
        from generate_series(0, {{ heads }} - 1) as number
    ) as head
),

{# [keys] for each query and head: the keys are counted from position 0. #}
scores as materialized (
    select
        queries.*,
        (
            select array_agg(
                inner_product(
                    subvector(k.activation, queries.start, queries.size),
                    queries.activation
                ) / sqrt(queries.size)
                order by k.position
            )
            from {{ key }} as k
            where k.sequence_id = queries.sequence_id
                and k.position <= queries.position
        ) as score
    from queries
),

weights as materialized (
    select
        scores.*,
        {{ softmax('scores.score') }} as weight
    from scores
),

outputs as materialized (
    select
        weights.sequence_id,
        weights.position,
        weights.start,
        (
            select {{ db_function('vector_sum') }}(
                subvector(v.activation, weights.start, weights.size)
                * {{ broadcast('weights.weight[v.position + 1]', 'weights.size') }}
                order by v.position
            )
            from {{ value }} as v
            where v.sequence_id = weights.sequence_id
                and v.position <= weights.position
        ) as activation
    from weights
)

select
    outputs.sequence_id,
    outputs.position,
    {{ db_function('vector_concat') }}(
        outputs.activation order by outputs.start
    ) as activation
from outputs
group by outputs.sequence_id, outputs.position
{%- endmacro %}
