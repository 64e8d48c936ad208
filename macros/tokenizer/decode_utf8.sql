{% macro decode_utf8(bytes) -%}
    {{ db_function('decode_utf8') }}({{ bytes }})
{%- endmacro %}
