{#-
    elementwise() without a sort: unnest() in a select list keeps the order. GELU and SiLU,
    which networks have at most of their numbers, are functions of whole vectors: see
    gelu.sql.
-#}

{% macro postgres__elementwise(activation, x) -%}
    {%- set name = dbt_nn.activation_name(activation) -%}
    {%- if name == 'linear' -%}
    {{ x }}
    {%- elif name in dbt_nn.gelu_polynomials() -%}
    {{ dbt_nn.db_function('vector_' ~ name) }}({{ x }})
    {%- else -%}
    {{ dbt_nn.one_by_one(name, x) }}
    {%- endif -%}
{%- endmacro %}


{% macro one_by_one(activation, x) -%}
    array(
        select {{ dbt_nn.activation_function(activation, 'element.x') }}
        from (select unnest({{ x }}::real[]) as x) as element
    )::vector
{%- endmacro %}
