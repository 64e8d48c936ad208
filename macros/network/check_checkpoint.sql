{#- Stops the run with advice unless the network's checkpoint is loaded and has
    the very layers of the folder of models. A statement for a pre-hook. -#}
{% macro check_checkpoint(schema, network) -%}
    {%- if execute %}
    do $body$
    declare
        difference text;
    begin
        if to_regclass('"{{ schema }}".config') is null then
            raise exception 'checkpoint {{ schema }} is not loaded in database %: '
                'run python scripts/load_checkpoint.py FOLDER_OR_HUB_NAME '
                '--name {{ schema }} (or make checkpoint for the bundled ones), '
                'or name another in the var {{ network }}_checkpoint',
                current_database();
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
            where relnamespace = '"{{ schema }}"'::regnamespace
                and relkind in ('r', 'v')
        ) as loaded using (name)
        where model.name is null or loaded.name is null
        order by loaded.name, model.name
        limit 1;
        if difference is not null then
            raise exception 'checkpoint {{ schema }} has other layers than the '
                'models in models/{{ network }} (%): run python '
                'scripts/generate_network.py FOLDER_OR_HUB_NAME --name '
                'ANOTHER_NETWORK, then dbt run --select ANOTHER_NETWORK',
                difference;
        end if;
    end
    $body$
    {%- endif %}
{%- endmacro %}
