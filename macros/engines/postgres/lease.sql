{#-
    One run of a network at a time in a target schema.

    A run takes its networks' leases before its first model, in the table
    network_leases. dbt opens a connection for each model, so that no lock lasts
    a run: each model's session holds a shared advisory lock instead, and says in
    the lease when it has done its part. So a lease is of a run that lives if a
    session holds the lock, or if the last session ended in order and less than
    `lease_gap()` ago. After a kill no session is left, and the next run starts at
    once. A lease that was given back stays as a row, which says when its run began.

    `dbt retry` tells no one what it runs again: its first model of a network takes
    the lease. No other command than run, build and retry needs one.

    The table is unlogged: no run survives a crash of the server either.
-#}

{#- Seconds between two models of a network (a test, another model) for which a
    run keeps its lease, without a session that holds it. A run that comes back
    later finds its lease still there unless another took it, and stops then. -#}
{% macro lease_gap() -%}
    30
{%- endmacro %}


{#- For on-run-start: takes the leases of all networks of which models are
    selected, waits for them (the var dbt_nn_wait), or stops the run. -#}
{% macro take_leases() -%}
    {%- set networks = [] -%}
    {%- if dbt_nn.builds_networks() -%}
        {%- do networks.extend(dbt_nn.selected_networks()) -%}
        {%- for network in networks -%}
            {%- do dbt_nn.refuse_empty(network) -%}
        {%- endfor -%}
        {%- do run_query(dbt_nn.create_lease_functions()) -%}
    {%- endif -%}
    {%- if networks -%}
        {%- set clock = modules.datetime.datetime -%}
        {%- set started = clock.now() -%}
        {%- set tried = {'taken': false, 'waits': false} -%}
        {%- set patience = dbt_nn.lease_patience() -%}
        {#- two tries a second; a run between two models is waited for -#}
        {%- for try in range((2 * patience) | int + 2 * (dbt_nn.lease_gap() | int) + 10)
            if not tried.taken -%}
            {%- set rows = run_query(dbt_nn.try_leases(networks, try)).rows -%}
            {%- if rows | length == 0 -%}
                {%- do tried.update(taken=true) -%}
            {%- else -%}
                {%- set waited = (clock.now() - started).total_seconds() -%}
                {%- if rows[0]['alive'] and waited >= patience -%}
                    {{ exceptions.raise_compiler_error(
                        dbt_nn.lease_refusal(rows[0])
                    ) }}
                {%- elif not tried.waits and waited >= 1 -%}
                    {%- do print('waiting: ' ~ dbt_nn.lease_holder(rows[0])) -%}
                    {%- do tried.update(waits=true) -%}
                {%- endif -%}
            {%- endif -%}
        {%- endfor -%}
        {%- if not tried.taken -%}
            {{ exceptions.raise_compiler_error(
                'no lease of ' ~ networks | join(', ') ~ ': others take turns; try again'
            ) }}
        {%- endif -%}
        {%- do dbt_nn.refresh_relations() -%}
    {%- endif -%}
{%- endmacro %}


{#- Seconds to wait for another run that lives: the var dbt_nn_wait, and a few for
    the session of a killed one, which ends within client_connection_check_interval. -#}
{% macro lease_patience() -%}
    {%- set wait = var('dbt_nn_wait', 0) -%}
    {%- if wait is not number or wait < 0 -%}
        {{ exceptions.raise_compiler_error(
            'the var dbt_nn_wait is ' ~ tojson(wait)
            ~ ': give the seconds to wait for another run, 0 or more'
        ) }}
    {%- endif -%}
    {{ return([wait, 3] | max) }}
{%- endmacro %}


{#- Whether the command builds models. Others make nothing in the database. For dbt
    retry, flags.WHICH is the command that it repeats. -#}
{% macro builds_models() -%}
    {{ return(execute and flags.WHICH in ('run', 'build')) }}
{%- endmacro %}


{#- Whether it may build a network's models: dbt retry has no list of what it runs. -#}
{% macro builds_networks() -%}
    {{ return(
        dbt_nn.builds_models() and (not selected_resources or dbt_nn.selected_networks() != [])
    ) }}
{%- endmacro %}


{#- Stops a run with --empty: dbt would put a query in the place of each table of
    weights, and nothing would be known of the network. -#}
{% macro refuse_empty(network) -%}
    {%- if flags.EMPTY -%}
        {{ exceptions.raise_compiler_error(
            '--empty does not go with ' ~ network ~ ', whose layers would read no '
            ~ 'weights either: leave it out (--exclude), or run it without --empty on '
            ~ 'a relation that has no rows'
        ) }}
    {%- endif -%}
{%- endmacro %}


{#- A statement of a model's hook, where dbt builds the model: dbt clone runs hooks,
    too, on a view of a table of another schema, to which they must not write. -#}
{% macro when_built(statement) -%}
    {%- if dbt_nn.builds_models() %}{{ statement }}{% endif -%}
{%- endmacro %}


{#- The networks of which models are selected, in alphabetical order: two runs
    that need several never wait for each other. -#}
{% macro selected_networks() -%}
    {%- set networks = [] -%}
    {%- for node in dbt_nn.network_nodes() if node.unique_id in selected_resources -%}
        {%- do networks.append(node.config.meta.network) -%}
    {%- endfor -%}
    {{ return(networks | unique | sort) }}
{%- endmacro %}


{#- The nodes of all networks' models. -#}
{% macro network_nodes() -%}
    {%- set nodes = [] -%}
    {%- for node in graph.nodes.values()
        if node.resource_type == 'model'
        and node.config.materialized != 'ephemeral'
        and node.config.meta.network -%}
        {%- do nodes.append(node) -%}
    {%- endfor -%}
    {{ return(nodes) }}
{%- endmacro %}


{#- A SELECT that takes all leases and gives no row, or else none and the one
    that is in the way. -#}
{% macro try_leases(networks, try) -%}
    {%- if try > 0 %}
    select pg_sleep(0.5);
    {%- endif %}
    select *
    from {{ dbt_nn.db_function('take_leases') }}(
        array[
            {%- for network in networks -%}
                '{{ network }}'{{ ', ' if not loop.last }}
            {%- endfor -%}
        ],
        '{{ invocation_id }}',
        'dbt {{ flags.WHICH }}'
    )
{%- endmacro %}


{#- Who has a lease, for a person. -#}
{% macro lease_holder(row) -%}
    {{ return(
        row['network'] ~ ' is being run in schema ' ~ target.schema ~ ' by '
        ~ (row['holder'] or 'another run that starts now')
    ) }}
{%- endmacro %}


{% macro lease_refusal(row) -%}
    {{ return(
        dbt_nn.lease_holder(row) ~ ". Two runs would mix their rows: run again when it is "
        ~ "done, let this one wait with --vars '{dbt_nn_wait: 3600}' (seconds), or "
        ~ "use another schema (DBT_NN_SCHEMA)"
    ) }}
{%- endmacro %}


{#- dbt's list of relations was made before the wait: brings those of the selected
    models up to date, so that they are replaced. A view that was made meanwhile
    is dropped, since dbt would not know which tables take it with them. Layers do
    not look at the list, see state_of(). -#}
{% macro refresh_relations() -%}
    {%- set found = {} -%}
    {%- for node in dbt_nn.network_nodes()
        if node.unique_id in selected_resources
        and node.config.materialized not in ('layer', 'generation') -%}
        {%- set relation = api.Relation.create(
            database=node.database, schema=node.schema, identifier=node.alias
        ) -%}
        {%- if node.schema not in found -%}
            {%- do found.update({node.schema: {}}) -%}
            {%- for row in list_relations_without_caching(
                relation.without_identifier()
            ).rows if row[2] == node.schema -%}
                {%- do found[node.schema].update({row[1]: row[3]}) -%}
            {%- endfor -%}
        {%- endif -%}
        {%- set type = found[node.schema].get(node.alias) -%}
        {%- set listed = load_cached_relation(relation) -%}
        {%- if listed and not type -%}
            {%- do adapter.cache_dropped(listed) -%}
        {%- elif type == 'view' and not listed -%}
            {%- do run_query('drop view if exists ' ~ relation ~ ' cascade') -%}
        {%- elif type and not listed -%}
            {%- do adapter.cache_added(relation.incorporate(type=type)) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro %}


{#- What a materialization of ours begins with. A model of dbt's has hooks for it, which
    dbt renders as it parses: those of all layers would be a seventh of that. -#}
{% macro begin_model() -%}
    {%- set lease = dbt_nn.hold_lease() -%}
    {%- if lease -%}
        {%- call statement('hold_lease', auto_begin=true) -%}{{ lease }}{%- endcall -%}
    {%- endif -%}
{%- endmacro %}


{#- What a materialization of ours ends with. -#}
{% macro end_model() -%}
    {%- set lease = dbt_nn.rest_lease() -%}
    {%- if lease -%}
        {%- call statement('rest_lease', auto_begin=true) -%}{{ lease }}{%- endcall -%}
    {%- endif -%}
{%- endmacro %}


{#- For the begin of each model: this session holds the network's lease from now
    on, and its checkpoint stays as it is. `commit`, so that other models' sessions
    do not wait for this one; `begin`, since dbt believes that its transaction goes
    on. -#}
{% macro hold_lease() -%}
    {%- set network = config.meta_get('network') -%}
    {%- if dbt_nn.builds_models() and network %}
    {%- do dbt_nn.check_hooks() -%}
    {%- do dbt_nn.refuse_empty(network) -%}
    {%- do dbt_nn.forget_dropped_view() -%}
    {%- do dbt_nn.check_inputs(network) -%}
    {%- set now = modules.datetime.datetime.now(modules.pytz.utc) %}
    {{ dbt_nn.forget_own_relations(network) }};
    {% if target.threads > 1 %}{{ dbt_nn.give_temporary_buffers() }};{% endif %}
    select {{ dbt_nn.db_function('hold_lease') }}(
        '{{ network }}',
        '{{ invocation_id }}',
        {{ dbt_nn.literal(this.identifier) }},
        {{ dbt_nn.literal(var(network ~ '_checkpoint', network)) }},
        {% if model.unique_id in selected_resources -%}
        null, null, null
        {%- else -%}
        'dbt retry',
        {{ dbt_nn.lease_patience() }} * interval '1 s',
        {{ (now - run_started_at).total_seconds() }} * interval '1 s'
        {%- endif %}
    );
    commit;
    begin
    {%- endif -%}
{%- endmacro %}


{#- Stops the run with advice where a project has switched off our on-run-start hooks:
    dbt gives them the configuration of models. -#}
{% macro check_hooks() -%}
    {%- if 'operation.dbt_nn.dbt_nn-on-run-start-0' not in graph.nodes -%}
        {{ exceptions.raise_compiler_error(
            'dbt_project.yml switches off all of dbt_nn, with the hooks that a run needs: '
            ~ 'instead of `models: {dbt_nn: {+enabled: false}}` name its networks, '
            ~ '`models: {dbt_nn: {gpt2: {+enabled: false}, gpt2_insight: {+enabled: false}, '
            ~ 'minilm: {+enabled: false}, ddpm: {+enabled: false}, '
            ~ 'ddpm_insight: {+enabled: false}}}`'
        ) }}
    {%- endif -%}
{%- endmacro %}


{#- A view that was dropped with a table below it leaves dbt's list of relations:
    without its cache (--no-populate-cache) dbt does not know what views are of. -#}
{% macro forget_dropped_view() -%}
    {%- if config.get('materialized') == 'view' and not invocation_args_dict.populate_cache -%}
        {%- set listed = load_cached_relation(this) -%}
        {%- if listed and not run_query(
            'select to_regclass(' ~ dbt_nn.literal(this) ~ ')'
        ).rows[0][0] -%}
            {%- do adapter.cache_dropped(listed) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}


{#- For the end of each model: it has done its part. -#}
{% macro rest_lease() -%}
    {%- if dbt_nn.builds_models() and config.meta_get('network') %}
    update {{ dbt_nn.db_function('network_leases') }}
    set idle_since = clock_timestamp()
    where network = '{{ config.meta_get("network") }}'
        and invocation_id = '{{ invocation_id }}'
    {%- endif -%}
{%- endmacro %}


{#- For on-run-end. -#}
{% macro release_leases() -%}
    {%- if dbt_nn.builds_models() %}
    do $body$
    begin
        if to_regclass({{ dbt_nn.literal(dbt_nn.db_function('network_leases')) }}) is not null then
            update {{ dbt_nn.db_function('network_leases') }}
            set idle_since = '-infinity'
            where invocation_id = '{{ invocation_id }}';
        end if;
    end
    $body$
    {%- endif -%}
{%- endmacro %}


{#- The table of leases and its functions, in the target schema. -#}
{% macro create_lease_functions() -%}
    {# two runs that start at once take turns, as in create_functions #}
    select pg_advisory_xact_lock(hashtext('dbt_nn.create_functions'));

    create schema if not exists {{ adapter.quote(target.schema) }};

    create unlogged table if not exists {{ dbt_nn.db_function('network_leases') }} (
        network text primary key,
        invocation_id text not null,
        holder text not null,
        since timestamptz not null,
        model text,
        checkpoint_id oid,
        idle_since timestamptz,
        sessions integer
    );
    do $body$
    begin
        if not exists (
            select from pg_attribute
            where attrelid = {{ dbt_nn.literal(dbt_nn.db_function('network_leases')) }}::regclass
                and attname = 'sessions'
        ) then
            alter table {{ dbt_nn.db_function('network_leases') }} add column sessions integer;
        end if;
    end
    $body$;

    create or replace function {{ dbt_nn.db_function('lease_key') }} (network text)
    returns integer language sql immutable as $body$
        select hashtext({{ dbt_nn.literal(target.schema ~ '.') }} || network)
    $body$;

    create or replace function {{ dbt_nn.db_function('take_leases') }} (
        networks text[], taker text, command text
    ) returns table (network text, alive boolean, holder text)
    language plpgsql as $body$
    #variable_conflict use_column
    declare
        wanted text;
    begin
        foreach wanted in array networks loop
            alive := not pg_try_advisory_xact_lock(
                hashtext('dbt_nn.lease'), {{ dbt_nn.db_function('lease_key') }}(wanted)
            );
            select format(
                '%s since %s%s%s',
                lease.holder,
                to_char(lease.since, 'YYYY-MM-DD HH24:MI:SS TZ'),
                ', now at ' || lease.model,
                case when alive then ', server process ' || (
                    select string_agg(lock.pid::text, ' and ')
                    from pg_locks as lock
                    where lock.locktype = 'advisory'
                        and lock.granted
                        and lock.classid = hashtext('dbt_nn.lease')::oid
                        and lock.objid
                            = {{ dbt_nn.db_function('lease_key') }}(wanted)::oid
                ) end
            ) into holder
            from {{ dbt_nn.db_function('network_leases') }} as lease
            where lease.network = wanted
                and lease.invocation_id <> taker
                and (alive or lease.idle_since > clock_timestamp()
                    - {{ dbt_nn.lease_gap() }} * interval '1 s');
            if alive or found then
                network := wanted;
                return next;
                return;
            end if;
        end loop;
        insert into {{ dbt_nn.db_function('network_leases') }}
            (network, invocation_id, holder, since, idle_since)
        select
            name,
            taker,
            format(
                '%s (role %s, from %s)',
                command,
                session_user,
                coalesce(host(inet_client_addr()), 'the same machine')
            ),
            clock_timestamp(),
            clock_timestamp()
        from unnest(networks) as name
        on conflict (network) do update set
            invocation_id = excluded.invocation_id,
            holder = excluded.holder,
            since = excluded.since,
            model = null,
            checkpoint_id = null,
            sessions = null,
            idle_since = excluded.idle_since;
    end
    $body$;

    {#
        With a `command`, the run takes the lease if it does not have it yet, and
        waits for it for `patience`. It has lost it if another has begun since this
        one began, `age` ago, and is done.
    #}
    create or replace function {{ dbt_nn.db_function('hold_lease') }} (
        wanted text,
        run text,
        current_model text,
        checkpoint text,
        command text,
        patience interval,
        age interval
    ) returns void language plpgsql as $body$
    #variable_conflict use_column
    declare
        began constant timestamptz := clock_timestamp();
        other record;
        checkpoint_now oid;
        checkpoint_then oid;
    begin
        {{ dbt_nn.claim_session() }}
        while command is not null and not exists (
            select from {{ dbt_nn.db_function('network_leases') }}
            where network = wanted and (
                invocation_id = run
                or idle_since = '-infinity' and since > began - age
            )
        ) loop
            select * into other
            from {{ dbt_nn.db_function('take_leases') }}(array[wanted], run, command);
            if other.alive and clock_timestamp() > began + patience then
                raise exception '{{ dbt_nn.lease_refusal(
                    {"network": "%", "holder": "%"}
                ) | replace("'", "''") }}',
                    wanted, coalesce(other.holder, 'another run that starts now');
            elsif found then
                perform pg_sleep(0.5);
            end if;
        end loop;
        {# a query whose client was killed ends, as nobody waits for its rows #}
        begin
            perform set_config('client_connection_check_interval', '1s', false);
        exception when invalid_parameter_value then
            null;
        end;
        perform pg_advisory_lock_shared(
            hashtext('dbt_nn.lease'), {{ dbt_nn.db_function('lease_key') }}(wanted)
        );
        perform pg_advisory_lock_shared(
            hashtext('dbt_nn.checkpoint'), hashtext(checkpoint)
        );
        checkpoint_now := to_regnamespace(quote_ident(checkpoint));
        update {{ dbt_nn.db_function('network_leases') }} as lease set
            model = current_model,
            idle_since = null,
            checkpoint_id = coalesce(checkpoint_id, checkpoint_now)
        where network = wanted and invocation_id = run
        returning checkpoint_id into checkpoint_then;
        if not found then
            raise exception 'another run of % took over in schema % while this one '
                'made a break of more than {{ dbt_nn.lease_gap() }} s, or the server crashed: '
                'run again', wanted, {{ dbt_nn.literal(target.schema) }};
        end if;
        if checkpoint_then is distinct from checkpoint_now then
            raise exception 'checkpoint % was loaded anew while this run was reading '
                'it: run again, so that no layer has weights of another', checkpoint;
        end if;
    end
    $body$;
{%- endmacro %}
