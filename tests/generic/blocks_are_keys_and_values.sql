{#-
    Every complete block of positions is there once, and holds exactly the keys and
    the values of its positions.

    key, value        relations that the layer reads
    hyperparameters   relation: the checkpoint's config, for num_key_value_heads or, if
                      there is none, num_attention_heads

    Fails with a row for each vector that is missing, or too many, or not what it
    should be: (layer, place, its number in the row, problem, both).
-#}
{% test blocks_are_keys_and_values(model, key, value, hyperparameters) %}
{{ config(enabled=dbt_nn.is_tested()) }}
{%- set heads = dbt_nn.hyperparameter(
    hyperparameters, 'num_key_value_heads', otherwise='num_attention_heads'
) %}
with lengths as (
    select
        sequence_id,
        max(position) + 1 as places,
        max(vector_dims(activation)) / {{ heads }} as size
    from {{ key }}
    group by sequence_id
),

expected as (
    select
        k.sequence_id,
        head,
        {{ dbt_nn.key_block() }} as positions,
        0 as part,
        k.position / {{ dbt_nn.key_block() }} as block,
        k.position % {{ dbt_nn.key_block() }} as number,
        subvector(
            k.activation, head * lengths.size + 1, lengths.size
        ) as activation
    from lengths
    inner join {{ key }} as k
        on
            lengths.sequence_id = k.sequence_id
            and lengths.places / {{ dbt_nn.key_block() }} > k.position / {{ dbt_nn.key_block() }}
    cross join lateral generate_series(0, {{ heads }} - 1) as head
    {%- for positions in dbt_nn.value_blocks() %}

    union all

    select
        v.sequence_id,
        element.feature / lengths.size,
        {{ positions }},
        element.feature % lengths.size / {{ dbt_nn.features_in_row() }} + 1,
        v.position / {{ positions }},
        element.feature % lengths.size % {{ dbt_nn.features_in_row() }},
        array_agg(element.x order by v.position)::vector
    from lengths
    inner join {{ value }} as v
        on
            lengths.sequence_id = v.sequence_id
            and lengths.places / {{ positions }} > v.position / {{ positions }}
    cross join lateral (
        select
            x,
            number::integer - 1 as feature
        from unnest(v.activation::real[]) with ordinality as element (x, number)
    ) as element
    group by 1, 2, 3, 4, 5, 6
    {%- endfor %}
),

actual as (
    select
        model.sequence_id,
        model.head,
        model.positions,
        model.part,
        model.block,
        element.number::integer - 1 as number,
        element.activation
    from {{ model }} as model
    cross join lateral unnest(model.x)
        with ordinality as element (activation, number)
)

select
    '{{ model.identifier }}' as layer,
    sequence_id,
    head,
    positions,
    part,
    block,
    number,
    case
        when actual.activation is null then 'is missing'
        when expected.activation is null then 'is of no complete block'
        else 'has other values'
    end as problem,
    left(actual.activation::text, 100) as value,
    left(expected.activation::text, 100) as expected
from actual
full outer join expected
    using (sequence_id, head, positions, part, block, number)
where actual.activation is distinct from expected.activation
order by sequence_id, head, positions, part, block, number
{% endtest %}
