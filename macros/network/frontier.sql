{#-
    The frontier: the places that a network computes now. For text the newest
    token of every active sequence (at first the whole prompt), for images the
    newest, less noisy image.

    It is looked up in the graph, not by ref(), so that the lineage shows the
    network and not an arrow from the frontier to every layer; the order holds
    all the same, since the first layer refs the frontier.
-#}
{% macro frontier() -%}
    {{- network_relation(config.meta_get('network') ~ '_frontier') -}}
{%- endmacro %}


{#- A model's relation without an arrow in the lineage. -#}
{% macro network_relation(name) -%}
    {%- if execute -%}
        {{ graph.nodes['model.' ~ model.package_name ~ '.' ~ name].relation_name }}
    {%- endif -%}
{%- endmacro %}


{#- A table of the network's checkpoint without an arrow in the lineage. -#}
{% macro network_source(network, name) -%}
    {{ graph.sources[
        ['source', model.package_name, network, name] | join('.')
    ].relation_name }}
{%- endmacro %}


{#- The columns that name a place, a list. Unit tests override it: dbt gives them
    no configuration. -#}
{% macro place_columns() -%}
    {{ return(config.meta_get('place') or []) }}
{%- endmacro %}


{#- The same for a select list, e.g. `x.sequence_id, x.position`. -#}
{% macro place(alias) -%}
    {%- for column in place_columns() -%}
        {{ alias }}.{{ column }}{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}


{#-
    The frontier's rows of a layer's output, under `alias`: a FROM item to be
    used as `from {{ at_frontier(ref('gpt2_ln_f'), 'x') }}`.
-#}
{% macro at_frontier(relation, alias) -%}
    {{ frontier() }} as frontier
    inner join {{ relation }} as {{ alias }}
        using ({{ place_columns() | join(', ') }})
{%- endmacro %}


{#- A number of the checkpoint's config.json, as a scalar subquery. -#}
{% macro hyperparameter(config_relation, parameter, type='integer') -%}
    (
        select config.value::{{ type }}
        from {{ config_relation }} as config
        where config.parameter = '{{ parameter }}'
    )
{%- endmacro %}
