{#-
    Stops the run with advice if models would be built in the schema of a checkpoint,
    as a generate_schema_name of another project's may have it: their tables would
    stand beside the weights, of which check_checkpoint() takes each table for one.
    A statement for an on-run-start hook; nothing where no network is selected.
-#}
{% macro check_schemas() -%}
    {%- set networks = {} -%}
    {%- if execute -%}
        {%- for node in dbt_nn.network_nodes() if node.unique_id in selected_resources -%}
            {%- do networks.update({node.schema: node}) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if networks %}
    do $body$
    declare
        built record;
    begin
        for built in
            select model.*
            from (
                values
                {%- for schema, node in networks.items() %}
                {%- set network = node.config.meta.network %}
                {#- a source may be switched off #}
                {%- set config = graph.sources.get(
                    ['source', node.package_name, network, 'config'] | join('.'),
                    {'schema': network}
                ) %}
                (
                    {{ dbt_nn.literal(network) }}, {{ dbt_nn.literal(schema) }},
                    {{ dbt_nn.literal(config.schema) }}
                ){{ ',' if not loop.last }}
                {%- endfor %}
            ) as model (network, schema, checkpoint)
            where model.schema = model.checkpoint or starts_with(
                obj_description(to_regnamespace(quote_ident(model.schema)), 'pg_namespace'),
                'dbt_nn checkpoint: '
            )
        loop
            raise exception 'models of % would be built in the schema %, beside the '
                'weights of a checkpoint: load the checkpoint with another --name and '
                'give that name in the var %_checkpoint, or let generate_schema_name '
                'give the models another schema',
                built.network, built.schema, built.network;
        end loop;
    end
    $body$;
    {%- endif %}
{%- endmacro %}
