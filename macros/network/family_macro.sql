{#-
    A macro of a family of networks, like text_check(); none where the family has none.
    It is looked for in this package, since a model of another project does not find our
    macros by their names alone, and then in that project, which may have a family.
-#}
{% macro family_macro(family, name) -%}
    {%- set name = family ~ '_' ~ name -%}
    {{ return(context['dbt_nn'].get(name) or context.get(name)) }}
{%- endmacro %}
