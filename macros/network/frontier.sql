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
    used as `from {{ at_frontier(ref('gpt2_ln_f'), 'x') }}`. Layers that keep only
    the newest step have no other rows.
-#}
{% macro at_frontier(relation, alias) -%}
    {%- if config.meta_get('history') == 'newest_step' -%}
        {{ return(relation ~ ' as ' ~ alias) }}
    {%- endif -%}
    {{ frontier() }} as frontier
    inner join {{ relation }} as {{ alias }}
        using ({{ place_columns() | join(', ') }})
{%- endmacro %}


{#- A value of the checkpoint's config.json, as a scalar subquery; NULL where it
    is null, unless another parameter's value is to stand in. -#}
{% macro hyperparameter(config_relation, parameter, type='integer', otherwise=none) -%}
    {%- if otherwise -%}
    coalesce(
        {{ hyperparameter(config_relation, parameter, type) }},
        {{ hyperparameter(config_relation, otherwise, type) }}
    )
    {%- else -%}
    (
        select nullif(config.value, 'null')::{{ type }}
        from {{ config_relation }} as config
        where config.parameter = '{{ parameter }}'
    )
    {%- endif -%}
{%- endmacro %}


{#- A relation that a var names: a model or seed of this project, or any relation
    of the database as schema.name; none for none. -#}
{% macro user_relation(name) -%}
    {{ return(ref(name) if name and '.' not in name else name) }}
{%- endmacro %}
