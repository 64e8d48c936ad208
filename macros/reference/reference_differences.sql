{#-
    How far each layer of a network is from its reference, one row a layer in the
    order of the DAG.

    network     the network, whose layers are built
    reference   relation: (layer, place integer[], activation real[]), made by
                dbt-nn check
    outcome     none, or what comes out at the end, as one layer more:
                {relation, layer, place: its columns, value: a real[] expression,
                tolerance, feeds_back}. Where that is off, the network has read
                something else from there on, which is not compared; unless
                feeds_back is false, and it reads nothing of it.
    -> (number, layer, problem, place, largest_difference,
        relative_difference: of the layer's largest value, ours and reference:
        five values around the largest difference, places)

    Blocks of keys and values have none: they repeat what other layers have, which the
    data test blocks_are_keys_and_values looks at.
    An image network's layers have one step; `place` in the reference begins with
    it, and those of the step at the frontier are compared.
-#}
{% macro reference_differences(network, reference, outcome=none) -%}
{%- if execute -%}
{%- set layers = [] -%}
{%- for node in dbt_nn.layers_in_order(network)
    | rejectattr('config.meta.history', 'equalto', 'keep')
    if 'block' not in node.config.meta.place -%}
    {%- do layers.append(node) -%}
{%- endfor -%}
{%- set by_step = layers | selectattr('config.meta.history', 'equalto', 'replace') | list -%}
{%- set names = [] -%}
{%- for node in graph.nodes.values()
    if node.resource_type == 'model' and node.config.meta.network == network -%}
    {%- do names.append("'" ~ node.name | replace(network ~ '_', '', 1) ~ "'") -%}
{%- endfor -%}
with reference as materialized (
    select
        layer,
        place,
        activation
    from {{ reference }}
),
{%- if by_step %}

steps as materialized (
    select distinct image_id, step from {{ dbt_nn.network_relation(network ~ '_frontier') }}
),
{%- endif %}

{#- Sequence and position, or image and step, from where on the input is off. #}
cuts as materialized (
    {%- if outcome and outcome.feeds_back | default(true) %}
    select
        place[1] as item,
        min(place[2]) as first_off
    from (
        {{ dbt_nn.compared_layer(0, outcome.layer, outcome.relation, outcome.place, outcome.value) }}
    ) as outcome (number, layer, place, place_text, expected, actual)
    cross join (
        select max(abs(element.x)) as x
        from reference
        cross join unnest(reference.activation) as element (x)
        where reference.layer = '{{ outcome.layer }}'
    ) as largest
    where exists (
        select
        from unnest(outcome.expected, outcome.actual) as element (expected, actual)
        where not coalesce(
            abs(element.expected::float8 - element.actual)
            <= {{ outcome.tolerance }} * largest.x,
            false
        )
    )
    group by place[1]
    {%- else %}
    select 0 as item, 0 as first_off where false
    {%- endif %}
),

compared as (
    {%- for node in layers %}
    {{ dbt_nn.compared_layer(
        loop.index,
        node.name | replace(network ~ '_', '', 1),
        node.relation_name,
        node.config.meta.place,
        ('logits' if node.name == network ~ '_lm_head' else 'activation::real[]'),
        of_step=(by_step | length > 0),
    ) }}
    and not exists (
        select from cuts
        {%- if by_step %}
        where cuts.item = reference.place[2] and cuts.first_off <= reference.place[1]
        {%- else %}
        where cuts.item = reference.place[1] and cuts.first_off <= reference.place[2]
        {%- endif %}
    )
    union all
    select {{ loop.index }}, '{{ node.name | replace(network ~ '_', '', 1) }}', null, '', null, null
    where not exists (
        select from reference
        where layer = '{{ node.name | replace(network ~ '_', '', 1) }}'
        {%- if by_step %}
            and (place[2], place[1]) in (select image_id, step from steps)
        {%- endif %}
    )
    union all
    {%- endfor %}
    {%- if outcome %}
    {{ dbt_nn.compared_layer(
        layers | length + 1,
        outcome.layer,
        outcome.relation,
        outcome.place,
        outcome.value,
    ) }}
    union all
    {%- endif %}
    select null, layer, place, '', activation, null
    from reference
    where layer not in ({{ names | join(', ') or "''" }})
),

{# The worst element of each place: a missing one is infinitely far. #}
differences as (
    select
        compared.*,
        element.channel,
        element.difference,
        element.largest
    from compared
    left join lateral (
        select
            channel,
            case
                when expected = actual then 0
                else coalesce(abs(expected::float8 - actual), 'infinity')
            end as difference,
            max(abs(expected)) over () as largest
        from unnest(compared.expected, compared.activation)
            with ordinality as element (expected, actual, channel)
        order by difference desc
        limit 1
    ) as element on true
),

summaries as (
    select
        layer,
        count(reference_place) as places,
        max(largest)::float8 as largest
    from differences
    group by layer
),

worst as (
    select distinct on (layer) *
    from differences
    order by layer, difference desc nulls last, reference_place
)

select
    number,
    '{{ network }}_' || layer as layer,
    case
        when number is null then 'is no layer of the network'
        when expected is null then 'has no reference'
        when activation is null then 'has no row there'
        when cardinality(activation) <> cardinality(expected)
            then format(
                'has %s channels, not %s',
                cardinality(activation), cardinality(expected)
            )
        when difference > 0 then 'differs'
    end as problem,
    format('%schannel %s', place, channel - 1) as place,
    difference as largest_difference,
    case
        when expected is null then 'infinity'
        when difference = 0 then 0
        else coalesce(difference / nullif(summaries.largest, 0), 'infinity')
    end as relative_difference,
    activation[first_shown : first_shown + 4] as ours,
    expected[first_shown : first_shown + 4] as reference,
    places
from worst
inner join summaries using (layer)
cross join lateral (
    select greatest(least(channel - 2, cardinality(expected) - 4), 1)::integer
        as first_shown
) as window_
order by number nulls first
{%- endif -%}
{%- endmacro %}


{#- Rows of `compared`: a layer's at the places of the reference; `of_step` if
    these begin with a step, and only those of the frontier's are meant. -#}
{% macro compared_layer(number, name, relation, place, value, of_step=false) -%}
    {%- set columns = (['step'] if of_step else []) + place %}
    select
        {{ number }} as number,
        '{{ name }}' as layer,
        reference.place as reference_place,
        concat(
            {%- for column in columns %}
            '{{ column }} ', reference.place[{{ loop.index }}], ', '{{ ',' if not loop.last }}
            {%- endfor %}
        ) as place,
        reference.activation as expected,
        layer.value as activation
    from reference
    left join lateral (
        select {{ value }} as value
        from {{ relation }} as layer
        where true
        {%- for column in place %}
            and layer.{{ column }} = reference.place[{{ loop.index + (1 if of_step else 0) }}]
        {%- endfor %}
    ) as layer on true
    where reference.layer = '{{ name }}'
        {%- if of_step %}
        and (reference.place[2], reference.place[1]) in (
            select image_id, step from steps
        )
        {%- endif %}
{%- endmacro %}
