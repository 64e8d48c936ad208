{#-
    A layer has one row for each place that the network has computed, no others,
    and in each a value that is whole.

    places          relation that names the places: (sequence_id, position, step)
    column          of type vector, or real[]; pgvector lets no NaN or infinity
                    into a vector, an array is looked through for them
    all_positions   false if only the newest place of a sequence at each step has
                    a row, as for logits

    Fails with a row for each place that is missing, or too many, or whose value
    is NULL, not finite or not as wide as most: (layer, place, problem, value).
    The primary key on the place already keeps it from being there twice.
-#}
{% test activations_are_complete(
    model, places, column='activation', all_positions=true
) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with places as (
    select
        places.sequence_id,
        places.position
    from {{ places }} as places
    {%- if not all_positions %}
    where not exists (
        select
        from {{ places }} as later
        where
            later.sequence_id = places.sequence_id
            and later.position = places.position + 1
            and later.step = places.step
    )
    {%- endif %}
),

activations as (
    select
        model.sequence_id,
        model.position,
        model.{{ column }} as activation,
        {{ dbt_nn.elements('model.' ~ column) }} as width,
        {{ dbt_nn.not_finite('model.' ~ column) }} as not_finite
    from {{ model }} as model
),

usual as (
    select mode() within group (order by width) as width
    from activations
),

problems as (
    select
        sequence_id,
        position,
        activations.activation::text as activation,
        case
            when places.position is null then 'is no place of the network'
            when activations.position is null then 'is missing'
            when activations.activation is null then 'is NULL'
            when activations.not_finite then 'is not finite'
            when activations.width <> usual.width
                then format(
                    'has %s elements, not %s', activations.width, usual.width
                )
        end as problem
    from places
    full outer join activations using (sequence_id, position)
    cross join usual
)

select
    '{{ model.identifier }}' as layer,
    sequence_id,
    position,
    problem,
    left(activation, 100) as value
from problems
where problem is not null
order by sequence_id, position
{% endtest %}
