{#-
    exp(x) for x up to 709: Postgres raises an error where exp() underflows,
    so what is below `lowest` stays there.
-#}
{% macro bounded_exp(x, lowest=-700) -%}
    exp(greatest({{ x }}, {{ lowest }}))
{%- endmacro %}
