{#- A text that tells a loaded checkpoint's content, an expression: its digest
    and how it is stored, but not when it was loaded. -#}
{% macro checkpoint_digest(checkpoint) -%}
(
    substring(
        obj_description(to_regnamespace('"{{ checkpoint }}"'), 'pg_namespace')
        from '[{].*'
    )::jsonb - 'loaded_at' - 'source' - 'revision'
)
{%- endmacro %}
