{#-
    Attention is a mean of the values at all places of a text, weighted by a softmax
    that sums to 1: computed once more, plainly and in float8, for the first, a middle
    and the last place of the first texts of the batch, and compared.

    query, key, value   relations that the layer reads
    hyperparameters     relation: the checkpoint's config, for num_attention_heads

    Fails with a row for each query and head: (layer, place, head, the sum of the
    weights, the largest difference, its channel, the value there and what it
    should be). The var tolerance_attention says how large a difference may be.
-#}
{% test attends_to_the_text(model, query, key, value, hyperparameters) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with texts as (
    select
        sequence_id,
        max(position) as last
    from {{ query }}
    group by sequence_id
    order by sequence_id
    limit 8
),

queries as (
    select
        q.sequence_id,
        q.position,
        head.number as head,
        head.size,
        subvector(q.activation, head.number * head.size + 1, head.size) as query
    from texts
    inner join {{ query }} as q
        on
            texts.sequence_id = q.sequence_id
            and q.position in (0, texts.last / 2, texts.last)
    cross join lateral (
        select
            number,
            vector_dims(q.activation) / heads.n as size
        from (
            select
                {{ dbt_nn.hyperparameter(hyperparameters, 'num_attention_heads') }} as n
        ) as heads
        cross join generate_series(0, heads.n - 1) as number
    ) as head
),

scores as (
    select
        queries.*,
        k.position as key_position,
        inner_product(
            subvector(k.activation, queries.head * queries.size + 1, queries.size),
            queries.query
        ) / sqrt(queries.size) as score
    from queries
    inner join {{ key }} as k using (sequence_id)
),

shifted as (
    select
        *,
        {{ dbt_nn.bounded_exp('score - max(score) over query') }} as e
    from scores
    window query as (partition by sequence_id, position, head)
),

weights as (
    select
        *,
        e / sum(e) over (partition by sequence_id, position, head) as weight
    from shifted
),

elements as (
    select
        weights.sequence_id,
        weights.position,
        weights.head,
        weights.head * weights.size + element.i as i,
        sum(weights.weight) as total,
        sum(weights.weight * element.x) as expected
    from weights
    inner join {{ value }} as v
        on
            weights.sequence_id = v.sequence_id
            and weights.key_position = v.position
    cross join lateral unnest(
        subvector(v.activation, weights.head * weights.size + 1, weights.size)::real[]
    ) with ordinality as element (x, i)
    group by 1, 2, 3, 4
),

compared as (
    select
        elements.*,
        (model.activation::real[])[elements.i] as actual
    from elements
    left join {{ model }} as model using (sequence_id, position)
)

select distinct on (sequence_id, position, head)
    '{{ model.identifier }}' as layer,
    sequence_id,
    position,
    head,
    total as sum_of_weights,
    abs(actual - expected) as difference,
    i as channel,
    actual,
    expected
from compared
where
    actual is null
    or abs(actual - expected) > {{ dbt_nn.tolerance('attention') }}
    * greatest(1, abs(expected))
    or abs(total - 1) > {{ dbt_nn.tolerance('probability') }}
order by
    sequence_id, position, head, abs(actual - expected) desc nulls first
{% endtest %}
