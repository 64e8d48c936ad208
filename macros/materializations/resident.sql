{#-
    Weights in the memory of the session, for a text that is alone.

    To find a row of weights on its page takes longer than its inner product. What
    a session of PostgreSQL keeps for itself are plans, and a plan has constants: a
    function that is declared immutable and has constant arguments is called once,
    when its statement is planned. resident_rows(), which reads a table, is declared
    so. A kernel marks the inner products with a table's rows (stored()); the
    materialization makes them a function of their own, in whose plan the rows are
    such a constant, and compiles the kernel's SELECT with it as well, for the steps
    that have one place (is_resident()). The numbers are the same to the bit.

    The plan ends with the session, and when its table is loaded anew. A row that is
    updated by hand is seen by the next session, so by every run of dbt.
-#}


{#-
    What heads a part of a kernel's SELECT that is for weights in their table, and
    what ends it. With `weights` it is an array, input.activation's inner product
    with each row (chunk, feature, weight, bias) whose chunk is input.chunk; else it
    is for several places.
-#}
{% macro stored(weights=none) -%}
    /* stored{{ ' in ' ~ weights if weights }}: */
{%- endmacro %}


{% macro end_of_stored() -%}
    /* end of stored */
{%- endmacro %}


{#- The table in a SELECT with such parts; none if it has none. -#}
{% macro stored_weights(sql) -%}
    {%- set found = modules.re.search('/[*] stored in (.*?): [*]/', sql) -%}
    {{ return(found.group(1) if found else none) }}
{%- endmacro %}


{#- The SELECT for one place, with weights in memory. -#}
{% macro resident(relation, sql) -%}
    {{- without_stored(
        without_stored(
            sql, ' in .*?', resident_function(relation) ~ '(input.chunk, input.activation)'
        ),
        '', ''
    ) -}}
{%- endmacro %}


{% macro without_stored(sql, weights, instead) -%}
    {{- modules.re.sub(
        '/[*] stored' ~ weights ~ ': [*]/.*?' ~ modules.re.escape(end_of_stored()),
        instead,
        sql,
        flags=modules.re.DOTALL
    ) -}}
{%- endmacro %}


{% macro resident_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_resident') }}
{%- endmacro %}


{#-
    The function `<layer>_resident(chunk, x)`. It names the table, of which it reads
    nothing, so that its plan ends with the table.
-#}
{% macro create_resident_function(relation, sql) -%}
    {%- set weights = stored_weights(sql) -%}
    create or replace function {{ resident_function(relation) }}(
        chunk integer, x anyelement
    ) returns real[] language plpgsql stable
    set plan_cache_mode = force_generic_plan
    as $resident$
    begin
        return array(
            select (inner_product((held.w).weight, $2) + (held.w).bias)::real
            from (
                select unnest({{ db_function('resident_rows') }}(null::{{ weights }})) as w
                where not exists (select from {{ weights }} where false)
                offset 0
            ) as held
            where (held.w).chunk = $1
        );
    end
    $resident$;
{%- endmacro %}


{#-
    Whether a step is to take that SELECT, a scalar expression: the frontier has one
    place, and the checkpoint's tables are not larger than the var resident_memory,
    like '2GB'; null: never.
-#}
{% macro is_resident(network) -%}
    {%- set config = graph.sources[
        ['source', model.package_name, network, 'config'] | join('.')
    ] -%}
    {%- set memory = var('resident_memory', none) -%}
    {%- if memory and run_query(
        'select ' ~ checkpoint_bytes(config.schema) ~ " <= pg_size_bytes('"
        ~ memory | replace("'", "''") ~ "')"
    ).rows[0][0] -%}
    (select count(*) = 1 from {{ frontier() }})
    {%- else -%}
    false
    {%- endif -%}
{%- endmacro %}


{#- DDL of resident_rows(): an array of a table's rows, in the order of chunk and
    feature. The argument is a NULL of the table's row type. -#}
{% macro create_resident_rows() -%}
    create or replace function {{ db_function('resident_rows') }} (relation anyelement)
    returns anyarray language plpgsql immutable as $body$
    declare
        stored constant regclass := (
            select typrelid from pg_type where oid = pg_typeof(relation)
        );
        rows alias for $0;
    begin
        execute format(
            'select array_agg(w order by chunk, feature) from %s as w', stored
        ) into rows;
        return rows;
    end
    $body$
{%- endmacro %}
