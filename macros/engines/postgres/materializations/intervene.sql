{#-
    How a layer applies interventions (macros/text/interventions.sql).

    The forward function of a layer that one names has an UPDATE after its INSERT, of the
    rows that it has just written. What reads the layer reads its table, and so the changed
    activations; the keys and values of complete blocks are made of them, too. Other
    layers have no other function than without interventions.

    All interventions on a layer read what it wrote: an UPDATE sees the rows as they were.
    What a later step needs of the prompts, a mean or the activation at one place of
    another prompt, is kept in a table when the prompts are read, before the UPDATE.
-#}

{#- The value of the var <network>_interventions, none for none. -#}
{% macro interventions_of(network) -%}
    {{ return(var(network ~ '_interventions', none)) }}
{%- endmacro %}


{#- Stops the run where the var is set for the model's network, whose macros do not
    read it. -#}
{% macro refuse_interventions() -%}
    {%- set network = config.meta_get('network') -%}
    {%- if dbt_nn.interventions_of(network) -%}
        {{ exceptions.raise_compiler_error(
            'the var ' ~ network ~ '_interventions is set, and only networks that write '
            ~ 'texts take interventions: leave it out for ' ~ network
        ) }}
    {%- endif -%}
{%- endmacro %}


{#- The rows that read_interventions() has checked. -#}
{% macro intervention_table() -%}
    {{ dbt_nn.db_function('network_interventions') }}
{%- endmacro %}


{#- What is kept of the prompts for them: the activation by the number of an
    intervention, or the layer's mean by 0. -#}
{% macro intervention_values() -%}
    {{ dbt_nn.db_function('network_intervention_values') }}
{%- endmacro %}


{#- DDL of the two tables. Unlogged as the layers are. -#}
{% macro create_intervention_tables() -%}
    {# two runs that start at once take turns, as in create_functions #}
    select pg_advisory_xact_lock(hashtext('dbt_nn.create_functions'));

    create unlogged table if not exists {{ dbt_nn.intervention_table() }} (
        network text,
        layer text,
        number integer,
        sequence_id integer,
        position integer,
        first_feature integer not null,
        last_feature integer not null,
        what text not null,
        value real,
        ordinal numeric,
        source_sequence_id integer,
        source_position integer,
        primary key (network, layer, number)
    );

    create unlogged table if not exists {{ dbt_nn.intervention_values() }} (
        network text,
        layer text,
        number integer,
        activation vector not null,
        primary key (network, layer, number)
    );
{%- endmacro %}


{#- Whether an intervention names the model, a layer. -#}
{% macro is_intervened() -%}
    {%- set network = config.meta_get('network') -%}
    {%- if not execute or not dbt_nn.interventions_of(network)
        or config.get('materialized') != 'layer' -%}
        {{ return(false) }}
    {%- endif -%}
    {%- if 'dbt_nn_is_intervened' not in model -%}
        {%- set table = dbt_nn.literal(dbt_nn.intervention_table()) -%}
        {%- if not run_query('select to_regclass(' ~ table ~ ') is not null').rows[0][0] -%}
            {{ exceptions.raise_compiler_error(
                'the interventions of ' ~ network ~ ' were not read yet: run all of the '
                ~ 'network, dbt run --select ' ~ network
            ) }}
        {%- endif -%}
        {%- do model.update(dbt_nn_is_intervened=run_query(
            'select exists (select ' ~ dbt_nn.interventions_here() ~ ')'
        ).rows[0][0]) -%}
    {%- endif -%}
    {{ return(model.dbt_nn_is_intervened) }}
{%- endmacro %}


{#- The rows that name the model: a FROM and a WHERE. -#}
{% macro interventions_here() -%}
from {{ dbt_nn.intervention_table() }} as intervention
where intervention.network = '{{ config.meta_get("network") }}'
    and intervention.layer = {{ dbt_nn.literal(model.name) }}
{%- endmacro %}


{#- A digest of them, for the fingerprint of the layer's rows: an expression. -#}
{% macro intervention_fingerprint() -%}
(
    select md5(string_agg(intervention::text, '/' order by intervention.number))
    {{ dbt_nn.interventions_here() | indent }}
)
{%- endmacro %}


{#-
    Statements of the forward function that apply the interventions to the rows that it
    has just written.
-#}
{% macro intervene(relation) -%}
    {%- set network = config.meta_get('network') -%}
    {%- set here -%}
        '{{ network }}', {{ dbt_nn.literal(model.name) }}
    {%- endset -%}
    if all_places then
        delete from {{ dbt_nn.intervention_values() }} as kept
        where (kept.network, kept.layer) = ({{ here }});

        insert into {{ dbt_nn.intervention_values() }} (network, layer, number, activation)
        select
            {{ here }},
            intervention.number,
            source.activation
        from {{ dbt_nn.intervention_table() }} as intervention
        inner join {{ relation }} as source
            on source.sequence_id = intervention.source_sequence_id
            and source.position = intervention.source_position
        where (intervention.network, intervention.layer) = ({{ here }});

        insert into {{ dbt_nn.intervention_values() }} (network, layer, number, activation)
        select
            {{ here }},
            0,
            avg(x.activation order by x.sequence_id, x.position)
        from {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
        inner join {{ relation }} as x using (sequence_id, position)
        where tokens.step = 0 and exists (
            select {{ dbt_nn.interventions_here() | indent(12) }}
                and intervention.what = 'mean'
        )
        having count(*) > 0;
    end if;

    update {{ relation }} as changed
    set activation = intervened.activation
    from (
        {{ dbt_nn.intervened_activations(relation, network) | indent(8) }}
    ) as intervened
    where changed.sequence_id = intervened.sequence_id
        and changed.position = intervened.position;
{%- endmacro %}


{#-
    The activations of the frontier's places that an intervention matches: a SELECT of
    (sequence_id, position, activation). Where several change a channel, the one with the
    highest ordinal holds. A place that is to get the activation of the same place of
    another prompt is one of its own prompt.
-#}
{% macro intervened_activations(relation, network) -%}
with matches as (
    select
        x.sequence_id,
        x.position,
        x.activation,
        intervention.first_feature,
        intervention.last_feature,
        intervention.what,
        intervention.value,
        intervention.ordinal,
        coalesce(kept.activation, source.activation)::real[] as other
    from {{ dbt_nn.frontier() }} as frontier
    inner join {{ relation }} as x using (sequence_id, position)
    inner join {{ dbt_nn.intervention_table() }} as intervention
        on intervention.network = '{{ network }}'
        and intervention.layer = {{ dbt_nn.literal(model.name) }}
        and coalesce(intervention.sequence_id = x.sequence_id, true)
        and coalesce(intervention.position = x.position, true)
    left join {{ dbt_nn.intervention_values() }} as kept
        on kept.network = intervention.network
        and kept.layer = intervention.layer
        and kept.number = case intervention.what when 'mean' then 0 else intervention.number end
    left join lateral (
        select source.activation
        from {{ relation }} as source
        where intervention.source_position is null
            and source.sequence_id = intervention.source_sequence_id
            and source.position = x.position
        offset 0
    ) as source on true
    where intervention.what <> 'replace'
        or intervention.source_position is not null
        or frontier.step = 0
    offset 0
)

select
    place.sequence_id,
    place.position,
    (
        select array_agg(
            case when changed.is_matched then changed.value else channel.value end
            order by channel.i
        )::vector
        from unnest(place.activation::real[]) with ordinality as channel (value, i)
        left join lateral (
            select true as is_matched, case matches.what
                when 'zero' then 0::real
                when 'scale' then channel.value * matches.value
                when 'add' then channel.value + matches.value
                when 'set' then matches.value
                {#- without it the run stops: a vector has no NULL #}
                else matches.other[channel.i]
            end as value
            from matches
            where matches.sequence_id = place.sequence_id
                and matches.position = place.position
                and channel.i - 1 between matches.first_feature and matches.last_feature
            order by matches.ordinal desc nulls last
            limit 1
        ) as changed on true
    ) as activation
from (
    select distinct on (matches.sequence_id, matches.position)
        matches.sequence_id,
        matches.position,
        matches.activation
    from matches
) as place
{%- endmacro %}
