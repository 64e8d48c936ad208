{#-
    Whether a data test of ours is enabled: those of a package are not, hundreds that
    its author has run, unless the var dbt_nn_tests says so. For the configuration of a
    generic test, whose own `model` is that of dbt's context.
-#}
{% macro is_tested() -%}
    {{ return(model.package_name == project_name or var('dbt_nn_tests', false)) }}
{%- endmacro %}
