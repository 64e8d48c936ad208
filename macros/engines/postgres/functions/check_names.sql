{#-
    Stops dbt with advice if a name is one that dbt or PostgreSQL would make another
    of. dbt writes names between quotes, in texts and in patterns as they are.
    PostgreSQL cuts what is longer than 63 bytes, so that two names may become the
    same. All macros rely on this: `adapter.quote()` is all that a name needs.

    While dbt parses, no more than the target is known.
-#}
{% macro check_names() -%}
    {%- set names = {target.schema: 'schema', target.dbname: 'database'} -%}
    {%- set lengths = {target.schema: 0} -%}
    {%- if execute -%}
        {%- for node in dbt_nn.network_nodes() if node.unique_id in selected_resources -%}
            {%- do names.update({node.schema: 'schema', node.alias: 'relation'}) -%}
            {%- do lengths.update({node.schema: 0}) -%}
            {%- if node.config.materialized in ('layer', 'generation') -%}
                {%- do lengths.update({node.alias: dbt_nn.longest_suffix(node.config.meta.history) | length}) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- for name, kind in names.items() -%}
        {%- for character in ('"', "'", '\\', '%') if character in name -%}
            {{ exceptions.raise_compiler_error(
                'the ' ~ kind ~ ' ' ~ name ~ ' has the character ' ~ character
                ~ ' in its name, which dbt cannot quote: use another ' ~ kind
            ) }}
        {%- endfor -%}
        {%- set room = 63 - lengths.get(name, 0) -%}
        {%- if name.encode('utf-8') | length > room -%}
            {{ exceptions.raise_compiler_error(
                'the ' ~ kind ~ ' ' ~ name ~ ' has a name of '
                ~ name.encode('utf-8') | length ~ ' bytes, and PostgreSQL would cut it'
                ~ (' after ' ~ room ~ ' and a suffix' if room < 63 else ' after 63')
                ~ ': use a shorter one' ~ (' (DBT_NN_SCHEMA)' if kind == 'schema')
            ) }}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro %}


{#- The longest of what the names of a layer's functions add to its own. Layers
    whose rows are a step's have none with weights in memory. -#}
{% macro longest_suffix(history=none) -%}
    {{ return('_forward' if dbt_nn.policy(history).is_whole else '_resident_one') }}
{%- endmacro %}
