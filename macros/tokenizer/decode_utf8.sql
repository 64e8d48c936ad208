{% macro decode_utf8(bytes) -%}
    {{ dbt_nn.db_function('decode_utf8') }}({{ bytes }})
{%- endmacro %}
