{#-
    `session`: one more session that makes steps of a network's loop.

    Batches are independent, so `dbt run --threads N` lets N sessions work: the model
    that owns the loop is one, and N - 1 models of this materialization are the others.
    dbt runs a model in a thread with a connection of its own, so that nothing else is
    needed: no password, no extension, no process. Each takes the next batch that no one
    has, and is done when there is none. The owner goes on until all batches are
    complete, and so takes up that of a session which ended before.

    Sessions share the results and the weights. What a step computes, the layers and the
    frontier (own_relations()), each has of its own: the owner in the network's tables,
    which stay to be looked at, another in temporary tables of the same names. The
    functions of the network name those without a schema, and each transaction that
    calls them says by its search path whose they are (enter_network()).

    A batch is taken by an advisory lock of the session, which ends with it.

    The model's SELECT is the frontier, what a session computes now. In the schema it is a
    view of the network's own: other commands (dbt clone) look for a relation.

    meta: network, family and place as for a layer; session, its number, from 2
-#}
{% materialization session, adapter='postgres' %}
    {%- set network = config.meta_get('network') -%}
    {%- set relation = this.incorporate(type='view') -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- set made = {'batches': 0} -%}
    {%- set works = config.meta_get('session') <= dbt_nn.sessions(network) -%}
    {#- One without work asks the server for nothing: after a crash each would try
        again to connect, for as long as the profile's retries say. -#}
    {%- if works or not existing or should_full_refresh() -%}
        {{ drop_relation_if_exists(existing) }}
        {%- call statement('view', auto_begin=true) -%}
            {{ create_view_as(relation, sql) }}
        {%- endcall -%}
        {%- do persist_docs(relation, model) -%}
        {%- do apply_grants(relation, config.get('grants'), should_revoke=false) -%}
        {{ adapter.commit() }}
    {%- endif -%}
    {%- if works -%}
        {%- do dbt_nn.begin_model() -%}
        {{ run_hooks(pre_hooks) }}
        {%- if config.meta_get('session') <= dbt_nn.opened_sessions(network) -%}
            {%- do dbt_nn.make_batches(network, sql, made) -%}
        {%- endif -%}
        {%- do dbt_nn.end_model() -%}
        {{ run_hooks(post_hooks) }}
        {{ adapter.commit() }}
    {%- endif -%}
    {%- do store_raw_result(
        name='main',
        message='batches: ' ~ made.batches if made.batches else 'no batch left',
        code='SESSION',
        rows_affected=made.batches,
    ) -%}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{#- How many sessions may work on a network's batches: dbt's threads, as far as models
    for them are selected. By default of the model's network. With interventions one does
    all, since a prompt may read another's activations. -#}
{% macro sessions(network=none) -%}
    {%- set network = network or model.config.meta.network -%}
    {%- if not execute or target.threads < 2 or not dbt_nn.loop_owner(network)
        or dbt_nn.interventions_of(network) -%}
        {{ return(1) }}
    {%- endif -%}
    {%- set numbers = [1] -%}
    {%- for node in dbt_nn.network_nodes()
        if node.config.materialized == 'session'
        and node.config.meta.network == network
        and node.package_name == model.package_name
        and (not selected_resources or node.unique_id in selected_resources) -%}
        {%- do numbers.append(node.config.meta.session) -%}
    {%- endfor -%}
    {%- set owner = dbt_nn.loop_owner(network) -%}
    {%- if selected_resources and owner.unique_id not in selected_resources -%}
        {{ return(1) }}
    {%- endif -%}
    {{ return([numbers | length, target.threads] | min) }}
{%- endmacro %}


{#- The model that owns a network's loop, a graph node. -#}
{% macro loop_owner(network) -%}
    {%- for node in dbt_nn.network_nodes()
        if node.config.materialized == 'generation'
        and node.config.meta.network == network
        and node.package_name == model.package_name -%}
        {{ return(node) }}
    {%- endfor -%}
{%- endmacro %}


{#- How many sessions the owner lets work, once its loop has begun; 0 where it does not
    begin: dbt starts the owner before the others, or as soon as they wait. -#}
{% macro opened_sessions(network) -%}
    {%- set clock = modules.datetime.datetime -%}
    {%- set started = clock.now() -%}
    {%- set opened = {'sessions': none} -%}
    {%- for try in range(10000)
        if opened.sessions is none and (clock.now() - started).total_seconds() < 20 -%}
        {%- do opened.update(sessions=run_query("
            select lease.sessions
            from (select pg_sleep(" ~ (0.02 if try else 0) ~ ")) as pause
            cross join " ~ dbt_nn.db_function('network_leases') ~ " as lease
            where lease.network = '" ~ network ~ "'
        ").rows[0][0]) -%}
    {%- endfor -%}
    {{ return(opened.sessions or 0) }}
{%- endmacro %}


{#-
    Takes batch after batch, and makes all steps of each.

    frontier   the model's SELECT
    made       counts the batches
-#}
{% macro make_batches(network, frontier, made) -%}
    {%- set owner = dbt_nn.loop_owner(network) -%}
    {%- set results = api.Relation.create(
        database=owner.database, schema=owner.schema, identifier=owner.alias
    ) -%}
    {%- do dbt_nn.create_own_relations(network, frontier) -%}
    {%- set enter = dbt_nn.enter_network(network) -%}
    {%- call statement('begin', auto_begin=true) -%}
        {{ dbt_nn.take_no_batch() }}
    {%- endcall -%}
    {%- do adapter.commit() -%}
    {#- Jinja's loops end at 100,000 -#}
    {%- set loop_state = {'goes_on': true} -%}
    {%- for round in range(100000) if loop_state.goes_on -%}
    {%- for step in range(100000) if loop_state.goes_on -%}
        {%- call statement('step', fetch_result=true, auto_begin=true) -%}
            {{ enter }};
            set local dbt_nn.session_number = {{ config.meta_get('session') }};
            {#- a worker cannot read another session's temporary tables -#}
            set local max_parallel_workers_per_gather = 0;
            select {{ dbt_nn.step_function(results) }}() as step, {{ dbt_nn.own_batch() }} as batch
        {%- endcall -%}
        {%- do adapter.commit() -%}
        {%- set row = load_result('step').table.rows[0] -%}
        {%- do loop_state.update(goes_on=row['step']) -%}
        {%- if row['step'] and row['batch'] != loop_state.batch -%}
            {%- do loop_state.update(batch=row['batch']) -%}
            {%- do made.update(batches=made.batches + 1) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- endfor -%}
    {%- do dbt_nn.drop_own_relations(network) -%}
{%- endmacro %}


{#-
    The relations of which each session has its own, as graph nodes: the layers of a
    step, the tokens of a batch and the frontier.
-#}
{% macro own_relations(network) -%}
    {%- set nodes = [] -%}
    {%- for node in dbt_nn.network_nodes()
        if node.config.meta.network == network
        and node.package_name == model.package_name
        and dbt_nn.is_own(node) -%}
        {%- do nodes.append(node) -%}
    {%- endfor -%}
    {{ return(nodes) }}
{%- endmacro %}


{% macro is_own(node) -%}
    {%- set network = node.config.meta.network -%}
    {%- set policy = dbt_nn.policy(node.config.meta.get('history') or 'append') -%}
    {{ return(
        node.name in (network ~ '_tokens', network ~ '_frontier')
        or node.config.materialized == 'layer' and not policy.keeps_batches
        or node.config.materialized == 'generation' and not policy.keeps_steps
    ) }}
{%- endmacro %}


{#-
    Statements that name those relations without a schema, so that each session finds
    its own.

    sql     statements
    nodes   those that they may name; none: all of the network
-#}
{% macro named_locally(sql, nodes=none) -%}
    {%- set nodes = dbt_nn.own_relations(config.meta_get('network')) if nodes is none else nodes -%}
    {%- set found = {'sql': sql} -%}
    {%- for node in nodes -%}
        {%- do found.update(sql=found.sql | replace(
            node.relation_name, adapter.quote(node.alias)
        )) -%}
    {%- endfor -%}
    {{ return(found.sql) }}
{%- endmacro %}


{#- Those that a layer's own statements may name: itself, and what it reads. -#}
{% macro own_relations_here() -%}
    {%- set network = config.meta_get('network') -%}
    {%- set prefix = 'model.' ~ model.package_name ~ '.' ~ network -%}
    {%- set nodes = [] -%}
    {%- for id in model.depends_on.nodes
        + [model.unique_id, prefix ~ '_tokens', prefix ~ '_frontier']
        if id in graph.nodes and graph.nodes[id].resource_type == 'model'
        and graph.nodes[id].config.meta.network == network
        and dbt_nn.is_own(graph.nodes[id]) -%}
        {%- do nodes.append(graph.nodes[id]) -%}
    {%- endfor -%}
    {{ return(nodes) }}
{%- endmacro %}


{#-
    A statement that makes the rest of the transaction find a network's relations by
    their names: the session's own, which PostgreSQL looks at first, or those in the
    network's schemas.

    nodes   those that it is to find; none: all of the network
-#}
{% macro enter_network(network, nodes=none) -%}
    {%- set nodes = dbt_nn.own_relations(network) if nodes is none else nodes -%}
    {%- set schemas = [] -%}
    {%- for node in nodes -%}
        {%- do schemas.append(adapter.quote(node.schema)) -%}
    {%- endfor -%}
    select
        set_config('dbt_nn.path', current_setting('search_path'), true),
        set_config(
            'search_path',
            {{ dbt_nn.literal(schemas | unique | join(', ')) }}
            || coalesce(', ' || nullif(current_setting('search_path'), ''), ''),
            true
        )
{%- endmacro %}


{#- A statement that takes that back, where others follow in the transaction. -#}
{% macro leave_network() -%}
    select set_config('search_path', current_setting('dbt_nn.path'), true)
{%- endmacro %}


{#- The session's own tables and frontier, empty; a part in each transaction, since each
    holds locks until it ends. -#}
{% macro create_own_relations(network, frontier) -%}
    {%- set views = [] -%}
    {%- for part in dbt_nn.own_relations(network) | batch(25) -%}
        {%- call statement('create', auto_begin=true) -%}
            {%- for node in part -%}
                {%- if node.config.materialized == 'view' -%}
                    {%- do views.append(node) -%}
                {%- else %}
            {{ dbt_nn.create_own_table(node) }}
                {%- endif -%}
            {%- endfor %}
            select
        {%- endcall -%}
        {%- do adapter.commit() -%}
    {%- endfor -%}
    {%- for node in views -%}
        {%- call statement('create', auto_begin=true) -%}
            create temporary view {{ adapter.quote(node.alias) }} as
            {{ dbt_nn.named_locally(frontier) }}
        {%- endcall -%}
        {%- do adapter.commit() -%}
    {%- endfor -%}
{%- endmacro %}


{#- A statement that gives the session memory for temporary tables, unless it has read
    one: for the 8 MB that it has by default a layer of a batch is too much. -#}
{% macro give_temporary_buffers() -%}
    do $body$
    begin
        if pg_size_bytes(current_setting('temp_buffers')) < 64 * 1024 * 1024 then
            perform set_config('temp_buffers', '64MB', false);
        end if;
    exception when invalid_parameter_value then
        null;
    end
    $body$
{%- endmacro %}


{#- DDL of a temporary table like one of the network's. -#}
{% macro create_own_table(node) -%}
            create temporary table {{ adapter.quote(node.alias) }} (
                like {{ node.relation_name }} including storage including indexes
            );
            alter table pg_temp.{{ adapter.quote(node.alias) }} set (
                toast_tuple_target = 8160
                {%- if node.config.meta.get('history') == 'replace' %}, fillfactor = 45{% endif %}
            );
{%- endmacro %}


{#- A statement that drops what a session has of them, if anything: a question to the
    network, asked in a thread of dbt, leaves its own (embed.sql). -#}
{% macro forget_own_relations(network) -%}
    do $body$
    declare
        own regclass;
    begin
        if to_regclass('pg_temp.' || {{ dbt_nn.literal(adapter.quote(network ~ '_tokens')) }}) is null then
            return;
        end if;
        for own in
            select class.oid from pg_class as class
            where class.relnamespace = pg_my_temp_schema()
                and class.relkind = 'r'
                and left(class.relname, {{ network | length + 1 }}) = '{{ network }}_'
        loop
            execute format('drop table %s', own);
        end loop;
    end
    $body$
{%- endmacro %}


{#- Drops them, so that the thread's next models have their room. -#}
{% macro drop_own_relations(network) -%}
    {%- for part in dbt_nn.own_relations(network)
        | sort(attribute='config.materialized', reverse=true) | batch(25) -%}
        {%- call statement('drop', auto_begin=true) -%}
            {{ dbt_nn.let_batches_go(network) }};
            {%- for node in part %}
            drop {{ 'view' if node.config.materialized == 'view' else 'table' }}
            if exists pg_temp.{{ adapter.quote(node.alias) }};
            {%- endfor %}
            select
        {%- endcall -%}
        {%- do adapter.commit() -%}
    {%- endfor -%}
{%- endmacro %}


{#- The number of the session, from 1, an expression. -#}
{% macro session_number() -%}
coalesce(nullif(current_setting('dbt_nn.session_number', true), '')::integer, 1)
{%- endmacro %}


{#- The batch of the session, an expression: NULL where it has none, or where no loop
    runs. -#}
{% macro own_batch() -%}
nullif(current_setting('dbt_nn.batch', true), '')::integer
{%- endmacro %}


{#- A statement: the session has no batch. Without it, one that has taken none has the
    first that is not finished, as where no loop runs. -#}
{% macro take_no_batch() -%}
    select
        set_config('dbt_nn.batch', '0', false) as batch,
        set_config('dbt_nn.batch_before', '', false) as batch_before
{%- endmacro %}


{#- A statement that unlocks the batches that the session has, or had before: once
    their end is committed. -#}
{% macro let_batches_go(network) -%}
    select
        pg_advisory_unlock(batch.key, batch.number),
        set_config('dbt_nn.batch', '', false),
        set_config('dbt_nn.batch_before', '', false)
    from (
        select
            {{ dbt_nn.batch_key(network) }} as key,
            nullif(current_setting(name, true), '')::integer as number
        from unnest(array['dbt_nn.batch', 'dbt_nn.batch_before']) as name
    ) as batch
    where batch.number > 0
{%- endmacro %}


{% macro batch_key(network) -%}
hashtext({{ dbt_nn.literal('dbt_nn.batch.' ~ target.schema ~ '.' ~ network) }})
{%- endmacro %}


{#-
    DDL of two functions of a network's loop.

    `<results>_take()` takes the next batch that has something left to be made and that
    no session has; NULL where there is none. What was taken before the last one is
    committed by now, and let go.

    `<results>_begin(sessions)` lets so many sessions take batches, at most as many as
    there are, and says how many. What the layers have already, the first batch, is the
    owner's.
-#}
{% macro create_take_functions(relation, network, family) -%}
    {%- set unfinished = dbt_nn.family_macro(family, 'unfinished')(network) %}
    create or replace function {{ dbt_nn.take_function(relation) }}()
    returns integer language plpgsql as $take$
    declare
        last_one constant integer := {{ dbt_nn.own_batch() }};
        before constant integer := nullif(current_setting('dbt_nn.batch_before', true), '')::integer;
        candidate integer;
    begin
        if before > 0 then
            perform pg_advisory_unlock({{ dbt_nn.batch_key(network) }}, before);
        end if;
        perform set_config('dbt_nn.batch_before', coalesce(last_one::text, ''), false);
        for candidate in
            select distinct unfinished.batch
            from ({{ unfinished | indent(12) }}) as unfinished
            order by unfinished.batch
        loop
            if pg_try_advisory_lock({{ dbt_nn.batch_key(network) }}, candidate) then
                {# another session may have completed it meanwhile #}
                if exists (
                    select from ({{ unfinished | indent(20) }}) as unfinished
                    where unfinished.batch = candidate
                ) then
                    perform set_config('dbt_nn.batch', candidate::text, false);
                    return candidate;
                end if;
                perform pg_advisory_unlock({{ dbt_nn.batch_key(network) }}, candidate);
            end if;
        end loop;
        return null;
    end
    $take$;

    create or replace function {{ dbt_nn.begin_function(relation) }}(sessions integer)
    returns integer language plpgsql as $begin$
    #variable_conflict use_variable
    declare
        working constant integer := greatest(1, least(sessions, (
            select count(distinct unfinished.batch)
            from ({{ unfinished | indent(12) }}) as unfinished
        )));
    begin
        perform set_config('dbt_nn.batch_before', '', false);
        if {{ dbt_nn.family_macro(family, 'is_begun')(network) }} then
            perform set_config('dbt_nn.batch', '', false);
            perform {{ dbt_nn.take_function(relation) }}();
        else
            perform * from ({{ dbt_nn.take_no_batch() }}) as none;
        end if;
        update {{ dbt_nn.db_function('network_leases') }} as lease
        set sessions = working
        where lease.network = '{{ network }}';
        return working;
    end
    $begin$;
{%- endmacro %}


{% macro take_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_take') }}
{%- endmacro %}


{% macro begin_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_begin') }}
{%- endmacro %}


{#- An expression: the first batch of a relation that is not finished, or else the last
    of all. None where several sessions are to share several batches: each takes its
    own. -#}
{% macro first_batch(batches, or_last=true) -%}
(
    select {% if dbt_nn.sessions() > 1 -%}
    case
        when count(distinct batch) filter (where finished_at is null) > 1 then null
        else
    {% endif -%}
    {%- if or_last -%}
    coalesce(min(batch) filter (where finished_at is null), max(batch))
    {%- else -%}
    min(batch) filter (where finished_at is null)
    {%- endif -%}
    {% if dbt_nn.sessions() > 1 %} end{% endif %}
    from {{ batches }}
)
{%- endmacro %}
