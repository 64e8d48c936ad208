{#-
    A statement that drops texts which are not in the user's relation any more, or have
    other chunks now; and asks again for those whose results are gone.

    table       the relation made by encoder_texts()
    texts       relation of the texts
    key         name of the column that names a text
    withdrawn   'delete', or 'keep': texts that are done stay with their results
-#}
{% macro forget_withdrawn_texts(table, texts, key, withdrawn) -%}
    {#- when dbt parses a hook, the model has no meta yet #}
    {%- set network = config.meta_get('network') or table.identifier.removesuffix('_texts') -%}
    {%- if withdrawn not in ('delete', 'keep') -%}
        {{ exceptions.raise_compiler_error(
            'the var ' ~ network ~ '_withdrawn is ' ~ tojson(withdrawn)
            ~ ": give 'delete' or 'keep'"
        ) }}
    {%- endif -%}
    do $body$
    begin
        delete from {{ table }} as known
        where {% if withdrawn == 'keep' %}known.finished_at is null and {% endif %}not exists (
            select from {{ dbt_nn.whole_relation(texts) }} as texts
            where texts.{{ adapter.quote(key) }} = known.key
        );
        delete from {{ table }} as known
        using {{ table }} as newer
        where newer.key = known.key
            and newer.request <> known.request
            and newer.sequence_id > known.sequence_id;
        {#- with --full-refresh none is finished, and the results are to be dropped #}
        {%- for name in ('embeddings', 'classes')
            if not should_full_refresh() and 'model.' ~ model.package_name ~ '.' ~ network ~ '_' ~ name in graph.nodes %}
        {%- set results = dbt_nn.network_relation(network ~ '_' ~ name) %}
        if to_regclass({{ dbt_nn.literal(results) }}) is null then
            update {{ table }} set finished_at = null where finished_at is not null;
        else
            update {{ table }} as known
            set finished_at = null
            where known.finished_at is not null and not exists (
                select from {{ results }} as results
                where results.key = known.key and results.chunk = known.chunk
            );
        end if;
        {%- endfor %}
    end
    $body$
{%- endmacro %}
