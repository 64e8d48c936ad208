{#-
    A layer norm's activations have mean 0 and variance 1 before their affine
    part: x = (activation - bias) / weight.

    input            relation that the norm reads
    weights          relation of one row: (weight, bias)
    hyperparameters  relation: the checkpoint's config, for layer_norm_epsilon

    The norm divides by sqrt(v + epsilon), v the input's variance, so the
    variance that is left is v / (v + epsilon), not quite 1.

    An element with a weight of about 0 cannot be undone. Of m such elements the
    rest says what their squares add up to, s, and so by Cauchy-Schwarz that
    their sum is sqrt(m s) at most: the mean may be off by that.

    Fails with a row for each place: (layer, place, mean, variance, what they
    should be). The var tolerance_norm says by how much they may differ.
-#}
{% test is_normalized(model, input, weights, hyperparameters) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with moments as (
    select
        model.sequence_id,
        model.position,
        vector_dims(model.activation)::float8 as n,
        {{ dbt_nn.variance('input.activation') }} as input_variance,
        element.dropped,
        element.total,
        element.squares
    from {{ model }} as model
    inner join {{ input }} as input using (sequence_id, position)
    cross join {{ weights }} as norm
    cross join lateral (
        select
            count(*) filter (where x is null) as dropped,
            coalesce(sum(x), 0) as total,
            coalesce(sum(x * x), 0) as squares
        from (
            select
                case
                    -- float32 holds the activation, about as large as the bias,
                    -- to 6e-8: a smaller weight makes more than 6e-5 of that.
                    when abs(w) >= 1e-3 * (1 + abs(b))
                        then (y::float8 - b) / w
                end as x
            from unnest(
                model.activation::real[], norm.weight::real[], norm.bias::real[]
            ) as element (y, w, b)
        ) as undone
    ) as element
),

expected as (
    select
        *,
        input_variance / (
            input_variance
            + {{ dbt_nn.hyperparameter(hyperparameters, 'layer_norm_epsilon', 'float8') }}
        ) as expected_variance
    from moments
)

select
    '{{ model.identifier }}' as layer,
    sequence_id,
    position,
    total / n as mean,
    squares / n as variance,
    dropped as elements_left_out,
    expected_variance
from expected
where
    not coalesce(
        abs(total) <= {{ dbt_nn.tolerance('norm') }} * n + sqrt(
            dropped * greatest(n * expected_variance - squares, 0)
        )
        and squares <= (1 + {{ dbt_nn.tolerance('norm') }}) * n * expected_variance
        and (
            dropped > 0
            or squares >= (1 - {{ dbt_nn.tolerance('norm') }}) * n * expected_variance
        ),
        false
    )
order by sequence_id, position
{% endtest %}
