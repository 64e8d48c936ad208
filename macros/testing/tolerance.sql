{#-
    How far a data test lets a number be off: the var tolerance_<name>. A test of another
    project's network does not see the vars of dbt_project.yml here, which gives the
    reasons: the defaults are the same.
-#}
{% macro tolerance(name) -%}
    {{ return(var('tolerance_' ~ name, {
        'norm': 1.0e-4,
        'attention': 1.0e-4,
        'probability': 1.0e-6,
        'attribution': 1.0e-4,
        'reference_text': 5.0e-6,
        'reference_image': 3.0e-5,
    }[name])) }}
{%- endmacro %}
