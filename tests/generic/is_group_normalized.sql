{#-
    A group norm's activations are its input with mean 0 and variance 1 in each
    group of channels of each image, then scaled, shifted and activated: computed
    once more, plainly and in float8, at every fourth place, and compared.

    input            relation that the norm reads
    weights          relation of one row: (weight, bias)
    hyperparameters  relation: the checkpoint's config, for norm_eps
    groups           name of the hyper-parameter that says how many groups;
                     norm_num_groups where it is null
    activation       name of the function after it, or none

    Fails with a row for each place: (layer, place, the largest difference, its
    channel, the value there and what it should be). The var tolerance_norm says
    how large a difference may be.
-#}
{% test is_group_normalized(
    model, input, weights, hyperparameters, groups='norm_num_groups', activation=none
) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with elements as (
    select
        x.image_id,
        x.y,
        x.x,
        element.i,
        element.x as element,
        (element.i - 1) * groups.n / vector_dims(x.activation) as group_number
    from {{ input }} as x
    cross join (
        select
            {{ dbt_nn.hyperparameter(
                hyperparameters, groups, otherwise='norm_num_groups'
            ) }} as n
    ) as groups
    cross join lateral unnest(x.activation::real[])
        with ordinality as element (x, i)
),

moments as (
    select
        image_id,
        group_number,
        avg(element::float8) as mean,
        var_pop(element::float8) as variance
    from elements
    group by image_id, group_number
),

expected as (
    select
        elements.image_id,
        elements.y,
        elements.x,
        elements.i,
        (elements.element - moments.mean) / sqrt(
            moments.variance
            + {{ dbt_nn.hyperparameter(hyperparameters, 'norm_eps', 'float8') }}
        )
        * (norm.weight::real[])[elements.i]
        + (norm.bias::real[])[elements.i] as expected
    from elements
    inner join moments using (image_id, group_number)
    cross join {{ weights }} as norm
    where (elements.x + elements.y) % 4 = 0
),

compared as (
    select
        image_id,
        y,
        x,
        expected.i,
        {% if activation -%}
            {{ dbt_nn.activation_function(activation, 'expected.expected') }}
        {%- else -%}
            expected.expected
        {%- endif %} as expected,
        (model.activation::real[])[expected.i] as actual
    from expected
    inner join {{ model }} as model using (image_id, y, x)
)

select distinct on (image_id, y, x)
    '{{ model.identifier }}' as layer,
    image_id,
    y,
    x,
    abs(actual - expected) as difference,
    i as channel,
    actual,
    expected
from compared
where
    actual is null
    or abs(actual - expected)
    > {{ dbt_nn.tolerance('norm') }} * greatest(1, abs(expected))
order by image_id, y, x, abs(actual - expected) desc nulls first
{% endtest %}
