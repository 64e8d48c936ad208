{#-
    Every complete block of positions is there once, with exactly the values of
    its positions, a row for each feature.

    values   relation of a layer: (sequence_id, position, activation)

    Fails with a row for each feature of a block that is missing, or too many, or
    not the values: (layer, place, problem, both).
-#}
{% test blocks_are_transposed_values(model, values) %}
with lengths as (
    select
        sequence_id,
        (max(position) + 1)
        / {{ attention_block() }} * {{ attention_block() }} as complete
    from {{ values }}
    group by sequence_id
),

expected as (
    select
        v.sequence_id,
        v.position / {{ attention_block() }} as block,
        element.feature::integer as feature,
        array_agg(element.x order by v.position)::vector as activation
    from lengths
    inner join {{ values }} as v
        on
            lengths.sequence_id = v.sequence_id
            and lengths.complete > v.position
    cross join lateral unnest(v.activation::real[])
        with ordinality as element (x, feature)
    group by 1, 2, 3
)

select
    '{{ model.identifier }}' as layer,
    sequence_id,
    block,
    feature,
    case
        when model.activation is null then 'is missing'
        when expected.activation is null then 'is no complete block'
        else 'has other values'
    end as problem,
    left(model.activation::text, 100) as value,
    left(expected.activation::text, 100) as expected
from {{ model }} as model
full outer join expected using (sequence_id, block, feature)
where model.activation is distinct from expected.activation
order by sequence_id, block, feature
{% endtest %}
