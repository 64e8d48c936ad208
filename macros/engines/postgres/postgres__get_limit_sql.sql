{#-
    What `dbt show` runs. dbt appends its own limit to a query, which is a syntax
    error after a semicolon or a limit. Inside of a sub-select both may be there, so
    that a query that psql takes can be pasted.
-#}
{% macro postgres__get_limit_sql(sql, limit) -%}
    {%- if limit is none -%}
        {{ sql }}
    {%- else -%}
        select * from (
            {{ sql.rstrip('; \n') }}
        ) as shown
        limit {{ limit }}
    {%- endif -%}
{%- endmacro %}
