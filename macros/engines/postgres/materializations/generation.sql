{#-
    `generation`: the last model of a network, which owns its loop.

    A DAG has no cycles, so the step from the newest output back to the first
    layer is made here: the model's SELECT, compiled as a layer's, samples the
    next output (the next token, the next, less noisy image); advance() makes
    it the frontier; then every layer runs again in the order of the DAG, until
    no sequence is left. One call a step, in one transaction that is committed
    when the step is done; no dbt work besides.

    Where the layers keep all steps (text), so does this table, and what it has
    stays from run to run, unless there is --full-refresh.

    Batches may be made in several sessions at once, see session.sql.

    meta: network, family, place and history as for a layer. The family's macros
    of the loop: <family>_check(), <family>_forget(), <family>_advance(),
    <family>_batches(), <family>_unfinished(), <family>_is_begun(), <family>_progress(),
    <family>_pace() and <family>_problems(). A family may have
    <family>_is_alone(), whether weights that are held in memory are for one text;
    <family>_completes_blocks(), whether a step has rows for layers of blocks;
    <family>_outdated(), a statement that drops rows which those of a step replace; and
    <family>_functions(), more functions of the network; and
    <family>_prepare(), the body of a function called before outputs are sampled.
-#}
{% materialization generation, adapter='postgres' %}
    {%- set relation = this.incorporate(type='table') -%}
    {%- set family = config.meta_get('family') -%}
    {%- set network = config.meta_get('network') -%}
    {%- set is_replaced = not dbt_nn.policy().keeps_steps -%}

    {%- do dbt_nn.begin_model() -%}
    {{ run_hooks(pre_hooks) }}
    {% do dbt_nn.check_tables(network) %}
    {% do run_query(dbt_nn.family_macro(family, 'check')(network)) %}
    {%- set more_functions = dbt_nn.family_macro(family, 'functions') -%}
    {%- set table = dbt_nn.create_layer(relation, sql, 'table') -%}
    {%- set functions = dbt_nn.named_locally(
        dbt_nn.create_forward_function(relation, dbt_nn.program(sql))
        ~ dbt_nn.create_take_functions(relation, network, family)
        ~ dbt_nn.create_advance_function(relation, network, family)
        ~ dbt_nn.create_prepare_function(relation, network, family)
        ~ dbt_nn.create_step_function(relation, network, family)
        ~ (more_functions(relation, network) if more_functions else '')
    ) -%}
    {%- set state = dbt_nn.state_of(relation, sql, table ~ functions) -%}
    {%- set refresh = not state.exists or is_replaced and not state.is_defined -%}
    {% if refresh %}
        {{ drop_relation_if_exists(state.found) }}
    {% endif %}
    {% if not state.is_defined or not is_replaced %}
        {% call statement('create') -%}
            {% if refresh -%}
                {{ table }}
            {%- else -%}
                {{ dbt_nn.forget(relation) }};
            {%- endif %}
            {% if not state.is_defined -%}
                {{ dbt_nn.enter_network(network) }};
                {{ dbt_nn.completed(functions, relation, sql, state.definition) }}
                {{ dbt_nn.leave_network() }};
            {%- endif %}
        {%- endcall %}
    {% endif %}
    {% if not state.is_defined %}
        {% do persist_docs(relation, model) %}
    {% endif %}
    {% do apply_grants(
        relation, config.get('grants'), should_revoke(state.found, refresh)
    ) %}
    {{ adapter.commit() }}

    {% do dbt_nn.run_loop(relation, network, family) %}

    {% call statement('main') -%}
        analyze {{ relation }}
    {%- endcall %}
    {%- do dbt_nn.end_model() -%}
    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{#-
    Stops the run unless all that the loop writes to is a table of this schema, and
    neither of another one (--defer) nor a view of such (dbt clone). What is built
    after the loop may be missing, and what looks inside the network.
-#}
{% macro check_tables(network) -%}
    {%- set names = [] -%}
    {%- for node in dbt_nn.network_nodes()
        if node.config.meta.network == network
        and node.config.materialized not in ('view', 'session')
        and node.unique_id != model.unique_id
        and model.unique_id not in node.depends_on.nodes
        and 'insight' not in node.tags -%}
        {%- do names.append(dbt_nn.literal(node.relation_name)) -%}
    {%- endfor -%}
    {%- set rows = run_query("
        select name
        from unnest(array[" ~ names | join(', ') ~ "]) as name
        left join pg_class as class on class.oid = to_regclass(name)
        where class.relkind is distinct from 'r'
    ").rows -%}
    {%- if rows | length > 0 -%}
        {{ exceptions.raise_compiler_error(
            rows[0][0] ~ ' is no table, and the loop writes to the tables of its '
            ~ 'network, never to those of another schema (--defer, dbt clone): run '
            ~ 'all of it here, dbt run --select ' ~ network
        ) }}
    {%- endif -%}
{%- endmacro %}


{#-
    Samples from the layers' first run (the prompt), then makes step after step
    while progress() counts any as left. Each is committed.

    The pace is that of the steps after the first, which plans statements and reads
    weights, and is given once there are two seconds of them; where sessions share the
    batches, this one's times their number. A line is printed each second at most, the
    first and the last always.
-#}
{% macro run_loop(relation, network, family) -%}
    {%- set progress = dbt_nn.named_locally(
        dbt_nn.family_macro(family, 'progress')(relation, network)
    ) -%}
    {%- set clock = modules.datetime.datetime -%}
    {%- set enter = dbt_nn.enter_network(network) -%}
    {%- set sessions = dbt_nn.begin_loop(relation, enter, dbt_nn.sessions(network)) -%}
    {%- set enter = enter ~ '; ' ~ dbt_nn.share_workers(sessions) -%}
    {%- set state = dbt_nn.committed_step(
        enter
        ~ ('; select ' ~ dbt_nn.prepare_function(relation) ~ '()'
            if dbt_nn.family_macro(family, 'prepare') else ''),
        dbt_nn.forward_function(relation) ~ '(true)',
        progress,
    ) -%}
    {%- do dbt_nn.report_progress(network, state, '', true) -%}
    {%- set loop_state = {
        'steps': state['steps'], 'made': 0, 'places': 0, 'since': none,
        'printed': clock.now(),
    } -%}
    {#- Jinja's loops end at 100,000. -#}
    {%- for round in range(100000) if loop_state.steps > 0 -%}
    {%- for step in range(100000) if loop_state.steps > 0 -%}
        {%- set state = dbt_nn.committed_step(
            enter, dbt_nn.step_function(relation) ~ '()', progress
        ) -%}
        {%- set now = clock.now() -%}
        {%- do loop_state.update({'steps': state['steps']}) -%}
        {%- if loop_state.since is none -%}
            {%- do loop_state.update({'since': now}) -%}
        {%- elif state['places'] -%}
            {%- do loop_state.update({
                'made': loop_state.made + 1,
                'places': loop_state.places + state['places'],
            }) -%}
        {%- endif -%}
        {%- set seconds = (now - loop_state.since).total_seconds() -%}
        {%- set due = (now - loop_state.printed).total_seconds() >= 1
            or loop_state.steps == 0 -%}
        {%- if due -%}
            {%- do loop_state.update({'printed': now}) -%}
        {%- endif -%}
        {%- do dbt_nn.report_progress(
            network,
            state,
            dbt_nn.family_macro(family, 'pace')(
                seconds,
                loop_state.made,
                loop_state.places * sessions,
                loop_state.steps / sessions,
            ) if loop_state.made and state['places']
            and (seconds >= 2 or loop_state.steps == 0) else '',
            due,
        ) -%}
    {%- endfor -%}
    {%- endfor -%}
    {#- The last outputs are of no further step, but belong to the rest. -#}
    {%- call statement('finish', auto_begin=true) -%}
        {{ enter }};
        select {{ dbt_nn.advance_function(relation) }}();
        {{ dbt_nn.end_with_own_batch(dbt_nn.family_macro(family, 'batches')(network)) }}
    {%- endcall -%}
    {%- do adapter.commit() -%}
    {%- call statement('finish', auto_begin=true) -%}
        {{ dbt_nn.let_batches_go(network) }}
    {%- endcall -%}
    {%- do adapter.commit() -%}
{%- endmacro %}


{#- Lets sessions take batches, and says how many may work. -#}
{% macro begin_loop(relation, enter, sessions) -%}
    {%- call statement('begin', fetch_result=true, auto_begin=true) -%}
        {{ enter }};
        select {{ dbt_nn.begin_function(relation) }}({{ sessions }})
    {%- endcall -%}
    {%- do adapter.commit() -%}
    {{ return(load_result('begin').table.rows[0][0]) }}
{%- endmacro %}


{#- A statement that leaves a session its share of the parallel workers. -#}
{% macro share_workers(sessions) -%}
    select set_config(
        'max_parallel_workers_per_gather',
        greatest(
            0, (current_setting('max_parallel_workers_per_gather')::integer + 1) / {{ sessions }} - 1
        )::text,
        true
    )
    {%- if sessions == 1 %} where false{% endif %}
{%- endmacro %}


{#- A statement that makes the batch which the layers have now the last one: it is what
    the next run finds them with. -#}
{% macro end_with_own_batch(batches) -%}
    update {{ batches }} as batches
    set batch = newest.batch + 1
    from (select max(batch) as batch from {{ batches }}) as newest
    where batches.batch = {{ dbt_nn.own_batch() }} and batches.batch < newest.batch
{%- endmacro %}


{#-
    Says what could not be made, and why. For on-run-end, so that it is read last.

    results   of dbt's context
-#}
{% macro print_problems(results) -%}
    {%- for result in results
        if execute and result.status == 'success'
        and result.node.config.materialized == 'generation' -%}
        {%- set meta = result.node.config.meta -%}
        {%- set problems = run_query(dbt_nn.family_macro(meta.family, 'problems')(
            meta.network, result.node.package_name
        )).rows[0] -%}
        {%- if problems[0] > 0 -%}
            {%- do print('%s: rows with an error: %s, for example %s' | format(
                meta.network, problems[0], problems[1]
            )) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro %}


{#-
    Says what a step brought: to dbt's debug log and to who calls dbt from Python
    (dbt_nn/runner.py) as JSON, to the terminal as a line where `due`.
-#}
{% macro report_progress(network, state, pace, due) -%}
    {%- set line = '%4d left  %24s  %s' | format(state['steps'], pace, state['news']) -%}
    {%- do log(tojson({
        'network': network,
        'steps_left': state['steps'],
        'pace': pace,
        'line': line,
        'pieces': fromjson(state['pieces'] or '{}'),
    })) -%}
    {%- if due -%}
        {%- do print(line) -%}
    {%- endif -%}
{%- endmacro %}


{#- Seconds as minutes and seconds, with hours where there are any. -#}
{% macro clock_time(seconds) -%}
    {%- set whole = seconds | round | int -%}
    {%- if whole >= 3600 -%}
        {{- '%d:%02d:%02d' | format(whole // 3600, whole // 60 % 60, whole % 60) -}}
    {%- else -%}
        {{- '%d:%02d' | format(whole // 60, whole % 60) -}}
    {%- endif -%}
{%- endmacro %}


{#- Makes the call of a function, commits, and returns the row that the query then gives.
    `enter` are statements before it. -#}
{% macro committed_step(enter, function, progress) -%}
    {%- call statement('step', fetch_result=true, auto_begin=true) -%}
        {{ enter }};
        select {{ function }};
        {{ progress }}
    {%- endcall -%}
    {%- do adapter.commit() -%}
    {{ return(load_result('step').table.rows[0]) }}
{%- endmacro %}


{#- The network's layers, as graph nodes, in an order in which each comes
    after those that it reads. -#}
{% macro layers_in_order(network) -%}
    {%- set waiting = [] -%}
    {%- for node in graph.nodes.values()
        if node.resource_type == 'model'
        and node.config.materialized == 'layer'
        and node.config.meta.network == network -%}
        {%- do waiting.append(node) -%}
    {%- endfor -%}
    {%- set ids = waiting | map(attribute='unique_id') | list -%}
    {%- set done = {} -%}
    {%- set ordered = [] -%}
    {%- for round in ids if ordered | length < ids | length -%}
        {%- for node in waiting if node.unique_id not in done -%}
            {%- set blockers = [] -%}
            {%- for parent in node.depends_on.nodes
                if parent in ids and parent not in done -%}
                {%- do blockers.append(parent) -%}
            {%- endfor -%}
            {%- if not blockers -%}
                {%- do ordered.append(node) -%}
                {%- do done.update({node.unique_id: true}) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endfor -%}
    {{ return(ordered) }}
{%- endmacro %}


{#- The function that makes the newest outputs the frontier, and says whether
    the layers begin anew, or NULL where no batch is left for this session; before it those that it calls, if the family has any. -#}
{% macro create_advance_function(relation, network, family) -%}
    {%- set loop_functions = dbt_nn.family_macro(family, 'loop_functions') -%}
    {%- if loop_functions -%}
    {{ loop_functions(relation, network) }}
    {%- endif %}
    create or replace function {{ dbt_nn.advance_function(relation) }}()
    returns boolean language plpgsql as $advance$
    {{ dbt_nn.family_macro(family, 'advance')(relation, network) }}
    $advance$;
{%- endmacro %}


{% macro advance_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_advance') }}
{%- endmacro %}


{#- The function that makes what the sampling of a step reads besides the layers, if the
    family needs any. -#}
{% macro create_prepare_function(relation, network, family) -%}
    {%- set prepare = dbt_nn.family_macro(family, 'prepare') -%}
    {%- if prepare %}
    create or replace function {{ dbt_nn.prepare_function(relation) }}()
    returns void language plpgsql as $prepare$
    {{ prepare(relation, network) }}
    $prepare$;
    {%- endif -%}
{%- endmacro %}


{% macro prepare_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_prepare') }}
{%- endmacro %}


{#- The function that makes one step: advance, run every layer, sample. It says whether
    there was one: other sessions may have all the batches that are left. -#}
{% macro create_step_function(relation, network, family) -%}
    {%- set is_alone = dbt_nn.family_macro(family, 'is_alone') -%}
    {%- set completes_blocks = dbt_nn.family_macro(family, 'completes_blocks') %}
    drop function if exists {{ dbt_nn.step_function(relation) }}();
    create function {{ dbt_nn.step_function(relation) }}()
    returns boolean language plpgsql as $step$
    declare
        anew constant boolean := {{ dbt_nn.advance_function(relation) }}();
        {#- for which texts the weights are held in memory #}
        held constant text :=
            {%- set sessions = dbt_nn.resident_sessions(network) if is_alone else 0 -%}
            {%- if sessions %} case
                when {{ dbt_nn.session_number() }} > {{ sessions }} then 'none'
                when {{ is_alone(network) }} then 'one'
                else 'several'
            end
            {%- else %} 'none'
            {%- endif %};
        {%- if completes_blocks %}
        {#- most steps complete none, and to find that out takes each layer 0.1 ms #}
        completes_blocks constant boolean := anew or {{ completes_blocks(network) | indent(8) }};
        {%- endif %}
    begin
        if anew is null then
            perform pg_sleep(0.1);
            return false;
        end if;
        {%- for node in dbt_nn.layers_in_order(network) %}
        {%- set of_blocks = completes_blocks and 'block' in node.config.meta.place %}
        {%- if of_blocks %}
        if completes_blocks then
        {%- endif %}
        perform {{ dbt_nn.forward_function(api.Relation.create(
            schema=node.schema, identifier=node.alias
        )) }}(anew, held);
        {%- if of_blocks %}
        end if;
        {%- endif %}
        {%- endfor %}
        {%- if dbt_nn.family_macro(family, 'prepare') %}
        perform {{ dbt_nn.prepare_function(relation) }}();
        {%- endif %}
        perform {{ dbt_nn.forward_function(relation) }}(anew, held);
        return true;
    end
    $step$;
{%- endmacro %}


{% macro step_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_step') }}
{%- endmacro %}
