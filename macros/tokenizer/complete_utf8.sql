{% macro complete_utf8(bytes) -%}
    {{ dbt_nn.db_function('complete_utf8') }}({{ bytes }})
{%- endmacro %}
