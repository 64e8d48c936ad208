{#-
    Spatial attention is a mean of the values at all places of an image, weighted
    by a softmax that sums to 1: computed once more, plainly and in float8, for
    the queries of some places of each image, and compared.

    query, key, value   relations that the layer reads
    hyperparameters     relation: the checkpoint's config, for attention_head_dim

    Fails with a row for each query and head: (layer, place, head, the sum of the
    weights, the largest difference, its channel, the value there and what it
    should be). The var tolerance_attention says how large a difference may be.
-#}
{% test attends_to_all_places(model, query, key, value, hyperparameters) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with size as (
    select
        image_id,
        max(y) as y,
        max(x) as x
    from {{ query }}
    group by image_id
),

queries as (
    select
        q.image_id,
        q.y,
        q.x,
        head.number as head,
        head.size,
        subvector(q.activation, head.number * head.size + 1, head.size) as query
    from size
    inner join {{ query }} as q
        on
            size.image_id = q.image_id
            and (q.y, q.x) in ((0, 0), (size.y / 2, size.x / 3), (size.y, size.x))
    cross join lateral (
        select
            number,
            heads.size
        from (
            select
                coalesce(
                    {{ dbt_nn.hyperparameter(hyperparameters, 'attention_head_dim') }},
                    vector_dims(q.activation)
                ) as size
        ) as heads
        cross join generate_series(
            0, vector_dims(q.activation) / heads.size - 1
        ) as number
    ) as head
),

scores as (
    select
        queries.*,
        k.y as key_y,
        k.x as key_x,
        inner_product(
            subvector(
                k.activation, queries.head * queries.size + 1, queries.size
            ),
            queries.query
        ) / sqrt(queries.size) as score
    from queries
    inner join {{ key }} as k using (image_id)
),

shifted as (
    select
        *,
        {{ dbt_nn.bounded_exp('score - max(score) over query') }} as e
    from scores
    window query as (partition by image_id, y, x, head)
),

weights as (
    select
        *,
        e / sum(e) over (partition by image_id, y, x, head) as weight
    from shifted
),

elements as (
    select
        weights.image_id,
        weights.y,
        weights.x,
        weights.head,
        weights.head * weights.size + element.i as i,
        sum(weights.weight) as total,
        sum(weights.weight * element.x) as expected
    from weights
    inner join {{ value }} as v
        on
            weights.image_id = v.image_id
            and weights.key_y = v.y
            and weights.key_x = v.x
    cross join lateral unnest(
        subvector(
            v.activation, weights.head * weights.size + 1, weights.size
        )::real[]
    ) with ordinality as element (x, i)
    group by 1, 2, 3, 4, 5
),

compared as (
    select
        elements.*,
        (model.activation::real[])[elements.i] as actual
    from elements
    left join {{ model }} as model using (image_id, y, x)
)

select distinct on (image_id, y, x, head)
    '{{ model.identifier }}' as layer,
    image_id,
    y,
    x,
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
order by image_id, y, x, head, abs(actual - expected) desc nulls first
{% endtest %}
