{#- A text as a literal of SQL. -#}
{% macro literal(text) -%}
    '{{ text | string | replace("'", "''") }}'
{%- endmacro %}
