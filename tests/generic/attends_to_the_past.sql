{#-
    Attention is a mean of the values up to each position, weighted by a softmax
    that sums to 1: computed once more, plainly and in float8, for the first, the
    middle and the newest query of some sequences, and compared.

    query, key, value   relations that the layer reads
    hyperparameters     relation: the checkpoint's config, for num_attention_heads and,
                        if there are fewer keys, num_key_value_heads
    sequences           how many sequences to look at
    window              the hyper-parameter that says to how many positions a query
                        attends; by default to all up to its own

    So weight on what lies ahead, a weight that is lost, and keys or values that
    are not those of their place all show.

    Fails with a row for each query and head: (layer, place, head, the sum of the
    weights, the largest difference, its element, the value there and what it
    should be). The var tolerance_attention says how large a difference may be.
-#}
{% test attends_to_the_past(
    model, query, key, value, hyperparameters, sequences=4, window=none
) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with newest as (
    select
        sequence_id,
        max(position) as position
    from {{ query }}
    group by sequence_id
    order by sequence_id
    limit {{ sequences }}
),

queries as (
    select
        q.sequence_id,
        q.position,
        head.number as head,
        head.number * head.keys / head.heads as key_head,
        head.size,
        subvector(q.activation, head.number * head.size + 1, head.size) as query
    from newest
    inner join {{ query }} as q
        on
            newest.sequence_id = q.sequence_id
            and q.position in (0, newest.position / 2, newest.position)
    cross join lateral (
        select
            number,
            heads.n as heads,
            heads.keys,
            vector_dims(q.activation) / heads.n as size
        from (
            select
                {{ dbt_nn.hyperparameter(hyperparameters, 'num_attention_heads') }} as n,
                {{ dbt_nn.hyperparameter(
                    hyperparameters,
                    'num_key_value_heads',
                    otherwise='num_attention_heads',
                ) }} as keys
        ) as heads
        cross join generate_series(0, heads.n - 1) as number
    ) as head
),

scores as (
    select
        queries.*,
        k.position as key_position,
        inner_product(
            subvector(
                k.activation, queries.key_head * queries.size + 1, queries.size
            ),
            queries.query
        ) / sqrt(queries.size) as score
    from queries
    inner join {{ key }} as k
        on
            queries.sequence_id = k.sequence_id
            and queries.position >= k.position
            {%- if window %}
            and queries.position - k.position
            < {{ dbt_nn.hyperparameter(hyperparameters, window) }}
            {%- endif %}
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
        subvector(
            v.activation, weights.key_head * weights.size + 1, weights.size
        )::real[]
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
    i as element,
    actual,
    expected
from compared
where
    actual is null
    or abs(actual - expected) > {{ dbt_nn.tolerance('attention') }}
    * greatest(1, abs(expected))
    or abs(total - 1) > {{ dbt_nn.tolerance('probability') }}
order by sequence_id, position, head, abs(actual - expected) desc nulls first
{% endtest %}
