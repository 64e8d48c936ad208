{#-
    The frontier: the places that a network computes now. For text the newest
    token of every active sequence (at first the whole prompt), for images the
    newest, less noisy image.

    It is looked up in the graph, not by ref(), so that the lineage shows the
    network and not an arrow from the frontier to every layer; the order holds
    all the same, since the first layer refs the frontier.
-#}
{% macro frontier() -%}
    {{- dbt_nn.network_relation(config.meta_get('network') ~ '_frontier') -}}
{%- endmacro %}


{#- A model's relation without an arrow in the lineage; that of another schema where
    ref() would give it (--defer). -#}
{% macro network_relation(name) -%}
    {%- if execute -%}
        {%- set node = graph.nodes['model.' ~ model.package_name ~ '.' ~ name] -%}
        {{ (node.defer_relation if dbt_nn.is_deferred(node) else node).relation_name }}
    {%- endif -%}
{%- endmacro %}


{#- Whether ref() gives a node of another schema: as in dbt's BaseRefResolver. -#}
{% macro is_deferred(node) -%}
    {{ return(invocation_args_dict.defer and node.defer_relation and (
        invocation_args_dict.favor_state and node.unique_id not in selected_resources
        or not adapter.get_relation(node.database, node.schema, node.alias)
    )) }}
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
    {%- for column in dbt_nn.place_columns() -%}
        {{ alias }}.{{ column }}{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}


{#-
    The frontier's rows of a layer's output, under `alias`: a FROM item to be
    used as `from {{ at_frontier(input, 'x') }}`. Layers whose rows are a step's
    have no other rows.
-#}
{% macro at_frontier(relation, alias) -%}
    {%- if dbt_nn.policy().is_whole -%}
        {{ return(relation ~ ' as ' ~ alias) }}
    {%- endif -%}
    {{ dbt_nn.frontier() }} as frontier
    inner join {{ relation }} as {{ alias }}
        using ({{ dbt_nn.place_columns() | join(', ') }})
{%- endmacro %}


{#-
    A layer's row at the place of another row: a FROM item, as
    `cross join {{ at_place(layer, 'y', 'x') }}`; no row where the layer has no such place.
    The layer's place is that of the model, unless `columns` name it.

    A join on the place's columns may be a trap where a third relation has one of them,
    too, as requests have image_id. PostgreSQL then may look a layer's rows up by that
    column alone, all rows of an image for each of its places, and compare the others
    one by one: layers have no statistics, so that it expects few rows either way, and
    plans that differ by 1 % are equal to it. A sub-select with OFFSET is planned by
    itself, and its index is given all columns.
-#}
{% macro at_place(relation, alias, row, columns=none) -%}
    lateral (
        select {{ alias }}.*
        from {{ relation }} as {{ alias }}
        where {% for column in columns or dbt_nn.place_columns() -%}
            {{ alias }}.{{ column }} = {{ row }}.{{ column }}{{ ' and ' if not loop.last }}
        {%- endfor %}
        offset 0
    ) as {{ alias }}
{%- endmacro %}


{#- A value of the checkpoint's config.json, as a scalar subquery; NULL where it
    is null, unless another parameter's value is to stand in. -#}
{% macro hyperparameter(config_relation, parameter, type='integer', otherwise=none) -%}
    {%- if otherwise -%}
    coalesce(
        {{ dbt_nn.hyperparameter(config_relation, parameter, type) }},
        {{ dbt_nn.hyperparameter(config_relation, otherwise, type) }}
    )
    {%- else -%}
    (
        select {{ "config.value #>> '{}'" if type == 'text' else "nullif(config.value, 'null')::" ~ type }}
        from {{ config_relation }} as config
        where config.parameter = '{{ parameter }}'
    )
    {%- endif -%}
{%- endmacro %}


{#- A relation that a var names: a model or seed of the project that dbt runs in, or
    any relation of the database as schema.name; none for none. To be read by
    sampled() or whole_relation(). -#}
{% macro user_relation(name) -%}
    {%- if not name or '.' in name -%}
        {{ return(name) }}
    {%- endif -%}
    {#- With its project: dbt warns of a package that finds a model of the root
        project by its name alone. -#}
    {%- set is_ours = name in ('dbt_nn_prompts', 'dbt_nn_texts') -%}
    {%- set project = 'dbt_nn' if is_ours else project_name -%}
    {%- set relation = ref(project, name) -%}
    {%- if execute and relation.is_cte and model.resource_type == 'model' -%}
        {{ exceptions.raise_compiler_error(
            'the model ' ~ name ~ ' is ephemeral, so that the database has no relation '
            ~ 'of its rows: materialize it as a table or a view'
        ) }}
    {%- endif -%}
    {%- if is_ours and dbt_nn.builds_models() and not load_relation(relation) -%}
        {%- set what = name.removeprefix('dbt_nn_') -%}
        {{ exceptions.raise_compiler_error(
            'the default ' ~ what ~ ' are not in the schema ' ~ relation.schema
            ~ ' yet: `dbt seed --select ' ~ name ~ '` loads them, or name a relation '
            ~ 'of yours in the var ' ~ model.config.meta.network ~ '_' ~ what
        ) }}
    {%- endif -%}
    {{ return(relation) }}
{%- endmacro %}


{#- Its name, without the filter of --sample. -#}
{% macro whole_relation(relation) -%}
    {{ return(relation if relation is string else relation.render()) }}
{%- endmacro %}


{#- The same under `alias`, for the end of a FROM: the rows of the time that --sample
    gives are taken by a WHERE, as a row keeps its type so. -#}
{% macro sampled(relation, alias) -%}
    {{ dbt_nn.whole_relation(relation) }} as {{ alias }}
    {%- set time = relation.event_time_filter -%}
    {%- if time %}
    where {{ alias }}.{{ time.field_name }} >= '{{ time.start }}'
        and {{ alias }}.{{ time.field_name }} < '{{ time.end }}'
    {%- endif -%}
{%- endmacro %}


{#- An incremental model's own table, of which it gives no row again; none where it is
    made anew, and for dbt show, which is to show all rows. -#}
{% macro earlier_rows(table) -%}
    {{ return(table if is_incremental() and flags.WHICH != 'show' else none) }}
{%- endmacro %}
