{#- Bytes first, text then: a character may be split over several tokens. -#}
{% macro token_text(token, position) -%}
    {{ dbt_nn.decode_utf8(
        "string_agg(" ~ token ~ ", ''::bytea order by " ~ position ~ ")"
    ) }}
{%- endmacro %}
