{#-
    Stops the run with advice if the server lacks what the kernels need.
    dbt_nn/requirements.py says the same in the same words.
-#}
{% macro check_server() -%}
    {{- dbt_nn.check_names() }}
    {{- dbt_nn.check_materialized() }}
    {#- dbt sets the profile's role where it connects, and rolls that back before the
        hooks: its list of relations was in the same transaction. #}
    {%- if target.role %}
    set role {{ target.role }};
    {%- endif %}
    do $body$
    declare
        database constant text := quote_ident(current_database());
        login constant text := quote_ident(session_user);
        pgvector record;
    begin
        if current_setting('server_version_num')::integer < 160000 then
            raise exception 'PostgreSQL % is too old: 16 or newer is needed',
                current_setting('server_version');
        end if;
        select
            extension.extversion as version,
            quote_ident(namespace.nspname) as schema,
            has_schema_privilege(namespace.oid, 'usage') as is_usable,
            namespace.nspname = any(current_schemas(true)) as is_on_path
        into pgvector
        from pg_extension as extension
        inner join pg_namespace as namespace on namespace.oid = extension.extnamespace
        where extension.extname = 'vector';
        if not found and exists (
            select from pg_available_extensions where name = 'vector'
        ) then
            raise exception 'pgvector is on the server but not in this database: run '
                '`create extension vector;` there as its owner or a superuser';
        elsif not found then
            raise exception 'pgvector is missing: install 0.7 or newer on the server '
                '(package postgresql-NN-pgvector on Debian), then '
                '`create extension vector;`';
        end if;
        if string_to_array(pgvector.version, '.')::integer[] < array[0, 7] then
            raise exception 'pgvector % is too old: 0.7 or newer is needed',
                pgvector.version;
        end if;
        if not pgvector.is_usable then
            raise exception '% may not use the schema %, which holds pgvector: run '
                '`grant usage on schema % to %;` as its owner',
                quote_ident(current_user), pgvector.schema, pgvector.schema,
                quote_ident(current_user);
        end if;
        if not pgvector.is_on_path then
            raise exception 'pgvector is in the schema %, which the search_path of % '
                'lacks: run `alter role % set search_path = %;`, or set search_path in '
                'the profile (DBT_NN_SEARCH_PATH=''public, %'')',
                pgvector.schema, login, login,
                concat_ws(', ', nullif(current_setting('search_path'), ''), pgvector.schema),
                pgvector.schema;
        end if;
        if current_setting('server_encoding') <> 'UTF8' then
            raise exception 'the encoding of the database % is %: use one that was '
                'created with encoding ''UTF8''',
                database, current_setting('server_encoding');
        end if;
        {%- if dbt_nn.builds_models() %}
        {{ dbt_nn.claim_session() }}
        if pg_is_in_recovery() then
            raise exception 'the server is a standby, which is read-only: use its '
                'primary';
        end if;
        if current_setting('default_transaction_read_only')::boolean then
            raise exception 'default_transaction_read_only is on for the role %: run '
                '`alter role % set default_transaction_read_only = off;`', login, login;
        end if;
        {%- endif %}
    end
    $body$;
    {{ dbt_nn.check_schemas() }}
{%- endmacro %}


{#-
    Statements of PL/pgSQL: an error if this session is in a process of the server that
    another session of a run has been in, as a pool of connections has it in transaction
    mode. Locks and settings of a session would be another's there. dbt opens a session
    for the hooks and for each model, and a pool empties what it gives to the next one
    in session mode.
-#}
{% macro claim_session() -%}
        if current_setting('dbt_nn.session', true) <> '' then
            raise exception 'sessions take turns with the server''s processes, as '
                'PgBouncer has it in transaction mode, so that locks and settings are '
                'lost: connect to the server itself, or to a pool in session mode';
        end if;
        perform set_config('dbt_nn.session', 'claimed', false);
{%- endmacro %}
