{#-
    A statement that makes the index of a column of vectors, for the nearest rows to a
    vector; and drops it where the var says so or it is another one.

    table   relation made by encoder_embeddings()
    index   a dict, or none for no index:
            type      hnsw, or ivfflat
            distance  cosine, l2 or inner_product
            and pgvector's own options: m and ef_construction, or lists

    It stays from run to run, and has each row as soon as that is there.
-#}
{% macro index_embeddings(table, index) -%}
    {%- set name = table.identifier ~ '_index' -%}
    {#- when dbt parses a hook, the model has no meta yet #}
    {%- set network = config.meta_get('network') or table.identifier.removesuffix('_embeddings') -%}
    {%- set wanted = dbt_nn.vector_index(index, 'the var ' ~ network ~ '_index') -%}
    do $body$
    declare
        known text := obj_description(
            to_regclass({{ dbt_nn.literal(adapter.quote(table.schema) ~ '.' ~ adapter.quote(name)) }}), 'pg_class'
        );
        dimensions constant integer := (
            select atttypmod from pg_attribute
            where attrelid = {{ dbt_nn.literal(table) }}::regclass and attname = 'embedding'
        );
    begin
        if known is not distinct from {{ dbt_nn.literal(wanted) if wanted else 'null' }} then
            return;
        end if;
        drop index if exists {{ adapter.quote(table.schema) }}.{{ adapter.quote(name) }};
        {%- if wanted %}
        if dimensions > 2000 then
            raise exception 'pgvector makes no index of vectors of % numbers, only of up to '
                '2000: set the var {{ network }}_index to null', dimensions;
        end if;
        create index {{ adapter.quote(name) }} on {{ table }} {{ wanted }};
        comment on index {{ adapter.quote(table.schema) }}.{{ adapter.quote(name) }} is {{ dbt_nn.literal(wanted) }};
        {%- endif %}
    end
    $body$
{%- endmacro %}


{#- The end of CREATE INDEX for such a dict; none for none. `where` names what gives it,
    for a message. -#}
{% macro vector_index(index, where) -%}
    {%- if index is none -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set types = {'hnsw': ['m', 'ef_construction'], 'ivfflat': ['lists']} -%}
    {%- set kind = index.type if index is mapping else none -%}
    {%- if kind not in types -%}
        {{ exceptions.raise_compiler_error(
            where ~ ' is ' ~ tojson(index)
            ~ ": give {type: hnsw, distance: cosine}, {type: ivfflat, …} or null"
        ) }}
    {%- endif -%}
    {%- set options = [] -%}
    {%- for name, value in index.items() if name not in ('type', 'distance') -%}
        {%- if name not in types[kind] or value is not integer or value is boolean or value < 1 -%}
            {{ exceptions.raise_compiler_error(
                where ~ ' has ' ~ name ~ ': ' ~ tojson(value) ~ ', and of ' ~ kind
                ~ ' may have ' ~ types[kind] | join(', ') ~ ', whole numbers above 0'
            ) }}
        {%- endif -%}
        {%- do options.append(name ~ ' = ' ~ value) -%}
    {%- endfor -%}
    {{ return(
        'using ' ~ kind ~ ' (embedding ' ~ dbt_nn.vector_distance(index.distance, where).opclass
        ~ ')' ~ (' with (' ~ options | join(', ') ~ ')' if options else '')
    ) }}
{%- endmacro %}


{#- pgvector's operator and class of operators for a distance by its name. -#}
{% macro vector_distance(name='cosine', where='distance') -%}
    {%- set distances = {
        'cosine': {'operator': '<=>', 'opclass': 'vector_cosine_ops'},
        'l2': {'operator': '<->', 'opclass': 'vector_l2_ops'},
        'inner_product': {'operator': '<#>', 'opclass': 'vector_ip_ops'},
    } -%}
    {%- set distance = name or 'cosine' -%}
    {%- if distance not in distances -%}
        {{ exceptions.raise_compiler_error(
            where ~ ' names the distance ' ~ tojson(name) ~ ': give ' ~ distances | join(', ')
        ) }}
    {%- endif -%}
    {{ return(distances[distance]) }}
{%- endmacro %}
