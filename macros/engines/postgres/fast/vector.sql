{% macro postgres__dot(a, b) -%}
    inner_product({{ a }}, {{ b }})
{%- endmacro %}


{% macro postgres__vector_of(x, by) -%}
    array_agg({{ x }} order by {{ by }})::vector
{%- endmacro %}


{% macro postgres__elements_of(vector, alias) -%}
    unnest({{ vector }}::real[]) with ordinality as {{ alias }} (value, i)
{%- endmacro %}


{% macro postgres__slice(vector, skipped, n) -%}
    subvector({{ vector }}, {{ skipped }} + 1, {{ n }})
{%- endmacro %}
