{#- A text that tells a loaded checkpoint's content, an expression: its digest
    and how it is stored, but not when it was loaded. -#}
{% macro checkpoint_digest(checkpoint) -%}
(
    {{ dbt_nn.checkpoint_about(checkpoint) }} - 'loaded_at' - 'source' - 'revision'
)
{%- endmacro %}


{#- What the loader says of a checkpoint in the comment of its schema: an expression,
    jsonb, NULL of a schema that has none. -#}
{% macro checkpoint_about(checkpoint) -%}
substring(
    obj_description(to_regnamespace(quote_ident({{ dbt_nn.literal(checkpoint) }})), 'pg_namespace')
    from '[{].*'
)::jsonb
{%- endmacro %}
