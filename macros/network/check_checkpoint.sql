{#-
    Stops the run with advice unless the network's checkpoint is loaded and has the very
    layers of the folder of models. A statement for a pre-hook.

    windows   the blocks, from 0, whose attention has a sliding window there; none where
              the checkpoint says nothing of that
-#}
{% macro check_checkpoint(schema, network, windows=none) -%}
    {%- if execute %}
    {%- set is_package = project_name != 'dbt_nn' %}
    {%- set load = 'dbt-nn load (or python dbt_packages/dbt_nn/scripts/load_checkpoint.py)'
        if is_package else 'python scripts/load_checkpoint.py' %}
    {%- set bundled = '' if is_package else ' (or make checkpoint for the bundled ones)' %}
    {%- set generate = 'dbt-nn generate (or python dbt_packages/dbt_nn/scripts/generate_network.py)'
        if is_package else 'python scripts/generate_network.py' %}
    do $body$
    declare
        checkpoint constant text := {{ dbt_nn.literal(schema) }};
        about constant jsonb := {{ dbt_nn.checkpoint_about(schema) }};
        difference text;
    begin
        if to_regclass(format('%I.config', checkpoint)) is null then
            raise exception 'checkpoint % is not loaded in database %: '
                'run {{ load }} FOLDER_OR_HUB_NAME '
                '--name %{{ bundled }}, '
                'or name another in the var {{ network }}_checkpoint',
                checkpoint, current_database(), checkpoint;
        end if;
        if coalesce((about ->> 'format')::integer, 1) <> {{ dbt_nn.checkpoint_format() }} then
            raise exception 'checkpoint % was loaded by another version of dbt_nn and '
                'has not what these models read: load it again by {{ load }} '
                'FOLDER_OR_HUB_NAME --name %{{ bundled }}; '
                'it came from %',
                checkpoint, checkpoint, coalesce(about ->> 'source', 'somewhere unknown');
        end if;
        select case
            when model.name is null then 'the checkpoint also has ' || loaded.name
            else 'the checkpoint has no ' || model.name
        end into difference
        from unnest(array[
            'tensors'
            {%- for source in graph.sources.values()
                if source.source_name == network
                and source.package_name == model.package_name -%}
                , '{{ source.identifier }}'
            {%- endfor -%}
        ]) as model (name)
        full outer join (
            select relname::text as name
            from pg_class
            where relnamespace = to_regnamespace(quote_ident(checkpoint))
                and relkind in ('r', 'v')
        ) as loaded using (name)
        where model.name is null or loaded.name is null
        order by loaded.name, model.name
        limit 1;
        {%- if windows is not none %}
        if difference is null then
            execute format($select$
                select 'attention has a sliding window in other blocks'
                from %I.config, jsonb_array_elements_text(value)
                    with ordinality as block (type, number)
                where parameter = 'layer_types'
                having coalesce(jsonb_agg(number - 1 order by number) filter (
                    where type = 'sliding_attention'
                ), '[]') <> '{{ tojson(windows) }}'
            $select$, checkpoint) into difference;
        end if;
        {%- endif %}
        if difference is not null then
            raise exception 'checkpoint % has other layers than the '
                'models in models/{{ network }} (%): run {{ generate }} '
                'FOLDER_OR_HUB_NAME --name ANOTHER_NETWORK, then dbt run --select ANOTHER_NETWORK',
                checkpoint, difference;
        end if;
    end
    $body$
    {%- endif %}
{%- endmacro %}


{#- The format of the tables that the models read, as dbt_nn/writer.py counts it. -#}
{% macro checkpoint_format() -%}
    2
{%- endmacro %}
