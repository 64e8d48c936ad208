{#-
    Every layer of a network computes what its reference says, at all the places
    that this has: transformers or diffusers ran the same checkpoint on the same
    input (scripts/make_reference.py).

    network     the network, whose layers are built
    reference   relation of the reference activations
    kind        text or image: the var tolerance_reference_<kind> says how far a value
                may be off, of the layer's largest
    outcome     none, or how to compare the model itself, which is no layer:
                {layer: its name in the reference, place: columns, value: real[]}

    Fails with a row for each layer that is off, the first in the order of the DAG
    first: (layer, problem, place, largest difference, the same as a share of the
    layer's largest value, five values of both sides, how many layers are off).
-#}
{% test matches_reference(model, network, reference, kind, outcome=none) %}
{%- set tolerance = dbt_nn.tolerance('reference_' ~ kind) -%}
{%- set described = dict(outcome, relation=model, tolerance=tolerance) if outcome else none %}
{% if execute %}
select
    layer,
    problem,
    place,
    largest_difference,
    relative_difference,
    ours,
    reference,
    count(*) over () as layers_that_are_off
from (
    {{ dbt_nn.reference_differences(network, reference, described) }}
) as difference
where relative_difference > {{ tolerance }}
order by number nulls first
{% endif %}
{% endtest %}
