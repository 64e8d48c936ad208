{#- Stops the run with advice if the server lacks what the kernels need. -#}
{% macro check_server() -%}
    do $body$
    declare
        extension_version text;
    begin
        if current_setting('server_version_num')::integer < 160000 then
            raise exception 'dbt_nn needs PostgreSQL 16 or newer; this server is %',
                current_setting('server_version');
        end if;
        select extversion into extension_version
        from pg_extension where extname = 'vector';
        if extension_version is null then
            raise exception 'database "%" has no pgvector: install pgvector 0.7 '
                'or newer on the server, then run: create extension vector',
                current_database();
        end if;
        if string_to_array(extension_version, '.')::integer[] < array[0, 7] then
            raise exception 'dbt_nn needs pgvector 0.7 or newer; database "%" has %',
                current_database(), extension_version;
        end if;
    end
    $body$
{%- endmacro %}
