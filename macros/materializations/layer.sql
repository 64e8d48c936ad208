{#-
    `layer`: an incremental table of activations, one row a place.

    The model's SELECT yields the rows of the frontier. The materialization
    creates the table, compiles the SELECT into a function that appends its
    rows, and runs that once over every place that is known: the prompt. For
    each later step the network's loop (see generation.sql) calls the function
    again, so the rows that are already there serve as the KV cache.

    meta (set by the generator for a network's folder):
        network   name of the network, the prefix of its models
        place     the columns that name a place: the primary key, without
                  which a place named twice would double at every layer
        history   'newest_step' if a step replaces the rows of the one before
                  (images), instead of adding to them (text)
-#}
{% materialization layer, adapter='postgres' %}
    {%- set relation = this.incorporate(type='table') -%}

    {{ run_hooks(pre_hooks) }}
    {{ drop_relation_if_exists(load_cached_relation(this)) }}
    {% call statement('main') -%}
        {{ create_layer(relation, sql, 'unlogged table') }}
        select {{ forward_function(relation) }}(all_places => true);
    {%- endcall %}
    {% do persist_docs(relation, model) %}
    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{#- The function that computes a layer's rows: `schema.name_forward`. -#}
{% macro forward_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_forward') }}
{%- endmacro %}


{#-
    DDL of a layer's table and of its function. `kind` is 'unlogged table' for
    activations, which can be computed again, else 'table'. A vector stays in its row as long as that
    fits a page (TOAST would copy it at each use), and is never compressed.

    The planner settings pin what is best at every size, since plans are made
    while the tables are still empty: ordered index scans, nested loops.
-#}
{% macro create_layer(relation, sql, kind) -%}
    create {{ kind }} {{ relation }} as
    {{ sql }}
    with no data;

    do $body$
    declare
        column_name text;
    begin
        for column_name in
            select attname from pg_attribute
            where attrelid = '{{ relation }}'::regclass
                and attnum > 0 and attstorage = 'x'
        loop
            execute format(
                'alter table {{ relation }} alter %I set storage external',
                column_name
            );
        end loop;
    end
    $body$;

    alter table {{ relation }} set (toast_tuple_target = 8160);
    {%- if config.meta_get('place') %}
    alter table {{ relation }}
        add primary key ({{ config.meta_get('place') | join(', ') }});
    {%- endif %}

    {%- set work = work_of(sql) %}
    {%- if work %}

    {{ create_band_functions(relation, sql) }}
    {%- endif %}

    create or replace function {{ forward_function(relation) }}(
        all_places boolean default false
    ) returns void language plpgsql
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set jit = off
    as $forward$
    declare
        bands integer := 1;
    begin
        {%- if config.meta_get('history') == 'newest_step' %}
        truncate {{ relation }};
        {%- else %}
        perform set_config('dbt_nn.all_places', all_places::text, true);
        {%- endif %}
        {%- if work %}
        {#- A text's new tokens are few: counting them would take longer. #}
        if all_places or {{ config.meta_get('history') == 'newest_step' }} then
            bands := {{ band_count(work) }};
        end if;
        if bands > 1 then
            insert into {{ relation }} select * from {{ bands_function(relation) }}(bands);
            return;
        end if;
        {%- endif %}
        insert into {{ relation }}
        {{ sql }};
    end
    $forward$;
{%- endmacro %}
