{#-
    Stops the run with advice if a model of the network that this one reads was never
    built in its schema, as where it is selected alone in a new schema: the database
    would only name the relation that it lacks.
-#}
{% macro check_inputs(network) -%}
    {%- for id in model.depends_on.nodes if id not in selected_resources -%}
        {%- set node = graph.nodes.get(id) -%}
        {%- if node and node.config.meta.network == network
            and node.config.materialized != 'ephemeral'
            and not dbt_nn.is_deferred(node)
            and not adapter.get_relation(node.database, node.schema, node.alias) -%}
            {{ exceptions.raise_compiler_error(
                model.name ~ ' reads ' ~ node.name ~ ', which is not in the schema '
                ~ node.schema ~ ' yet: run all of the network, dbt run --select '
                ~ network
            ) }}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro %}
