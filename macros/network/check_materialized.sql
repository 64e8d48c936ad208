{#-
    Stops dbt with advice if a layer has another materialization than a network needs, as
    `models: +materialized: table` of a whole project gives it: it would be a table
    without the function that the loop calls.
-#}
{% macro check_materialized() -%}
    {%- if execute -%}
        {%- for node in dbt_nn.network_nodes()
            if node.unique_id in selected_resources and node.config.meta.place
            and 'insight' not in node.tags
            and node.config.materialized not in ('layer', 'generation') -%}
            {{ exceptions.raise_compiler_error(
                node.name ~ ' is materialized as ' ~ node.config.materialized
                ~ ', and a network needs its own materializations: in dbt_project.yml, '
                ~ 'write +materialized below the name of your project, not right below '
                ~ 'models:'
            ) }}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}
