{#-
    A layer with a row a text has one for each text of the batch, no others, and in each
    a vector as wide as the others.

    tokens   relation that names the texts: (sequence_id, position)

    Fails with a row for each text: (layer, sequence_id, problem).
-#}
{% test sequences_are_complete(model, tokens) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with texts as (
    select sequence_id
    from {{ tokens }}
    where position = 0
),

activations as (
    select
        sequence_id,
        vector_dims(activation) as width
    from {{ model }}
),

usual as (
    select mode() within group (order by width) as width
    from activations
),

problems as (
    select
        sequence_id,
        case
            when texts.sequence_id is null then 'is no text of the batch'
            when activations.sequence_id is null then 'is missing'
            when activations.width is null then 'is NULL'
            when activations.width <> usual.width
                then format('has %s elements, not %s', activations.width, usual.width)
        end as problem
    from texts
    full outer join activations using (sequence_id)
    cross join usual
)

select
    '{{ model.identifier }}' as layer,
    sequence_id,
    problem
from problems
where problem is not null
order by sequence_id
{% endtest %}
