{#- What a checkpoint's tables and their indexes take, in bytes: an expression. -#}
{% macro checkpoint_bytes(checkpoint) -%}
    coalesce((
        select sum(pg_total_relation_size(weights.oid))
        from pg_class as weights
        where weights.relnamespace = to_regnamespace(quote_ident({{ dbt_nn.literal(checkpoint) }}))
            and weights.relkind = 'r'
    ), 0)
{%- endmacro %}
