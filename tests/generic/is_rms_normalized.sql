{#-
    A root mean square norm's activations have the mean square 1 before their scale:
    x = activation / weight.

    input            relation that the norm reads
    weights          relation of one row: (weight)
    hyperparameters  relation: the checkpoint's config, for rms_norm_eps

    The norm divides by sqrt(m + epsilon), m the input's mean square, so what is left is
    m / (m + epsilon), not quite 1. An element with a weight of about 0 cannot be undone:
    it is left out, here and of the input.

    Fails with a row for each place: (layer, place, mean square, what it should be). The
    var tolerance_norm says by how much they may differ.
-#}
{% test is_rms_normalized(model, input, weights, hyperparameters) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with squares as (
    select
        model.sequence_id,
        model.position,
        element.mean_square,
        element.input_mean_square / (
            element.all_mean_square
            + {{ dbt_nn.hyperparameter(hyperparameters, 'rms_norm_eps', 'float8') }}
        ) as expected
    from {{ model }} as model
    inner join {{ input }} as input using (sequence_id, position)
    cross join {{ weights }} as norm
    cross join lateral (
        select
            avg((y::float8 / w) ^ 2) filter (where abs(w) >= 1e-3) as mean_square,
            avg(x::float8 * x) filter (where abs(w) >= 1e-3) as input_mean_square,
            avg(x::float8 * x) as all_mean_square
        from unnest(
            model.activation::real[], norm.weight::real[], input.activation::real[]
        ) as element (y, w, x)
    ) as element
)

select
    '{{ model.identifier }}' as layer,
    sequence_id,
    position,
    mean_square,
    expected
from squares
where
    expected is not null
    and not coalesce(
        abs(mean_square - expected)
        <= {{ dbt_nn.tolerance('norm') }} * expected + 1e-12,
        false
    )
order by sequence_id, position
{% endtest %}
