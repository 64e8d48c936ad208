{% macro complete_utf8(bytes) -%}
    {{ db_function('complete_utf8') }}({{ bytes }})
{%- endmacro %}
