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

    meta: network, family, place and history as for a layer. The family's macros
    of the loop: <family>_check(), <family>_forget(), <family>_advance(),
    <family>_progress(), <family>_pace() and <family>_problems(). A family may have
    <family>_is_alone(), whether weights that are held in memory are for one text;
    <family>_outdated(), a statement that drops rows which those of a step replace; and
    <family>_functions(), more functions of the network.
-#}
{% materialization generation, adapter='postgres' %}
    {%- set relation = this.incorporate(type='table') -%}
    {%- set family = config.meta_get('family') -%}
    {%- set network = config.meta_get('network') -%}
    {%- set is_replaced = not dbt_nn.policy().keeps_steps -%}

    {{ run_hooks(pre_hooks) }}
    {% do dbt_nn.check_tables(network) %}
    {% do run_query(dbt_nn.family_macro(family, 'check')(network)) %}
    {%- set more_functions = dbt_nn.family_macro(family, 'functions') -%}
    {%- set table = dbt_nn.create_layer(relation, sql, 'table') -%}
    {%- set functions = dbt_nn.create_forward_function(relation, sql, dbt_nn.program(sql))
        ~ dbt_nn.create_advance_function(relation, network, family)
        ~ dbt_nn.create_step_function(relation, network, family)
        ~ (more_functions(relation, network) if more_functions else '') -%}
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
                {{ dbt_nn.completed(functions, sql, state.definition) }}
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
    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{#-
    Stops the run unless all that the loop writes to is a table of this schema, and
    neither of another one (--defer) nor a view of such (dbt clone). What is built
    after the loop may be missing.
-#}
{% macro check_tables(network) -%}
    {%- set names = [] -%}
    {%- for node in dbt_nn.network_nodes()
        if node.config.meta.network == network
        and node.config.materialized != 'view'
        and node.unique_id != model.unique_id
        and model.unique_id not in node.depends_on.nodes -%}
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
    weights, and is given once there are two seconds of them. A line is printed
    each second at most, the first and the last always.
-#}
{% macro run_loop(relation, network, family) -%}
    {%- set progress = dbt_nn.family_macro(family, 'progress')(relation, network) -%}
    {%- set clock = modules.datetime.datetime -%}
    {%- set state = dbt_nn.committed_step(dbt_nn.forward_function(relation) ~ '(true)', progress) -%}
    {%- do dbt_nn.report_progress(network, state, '', true) -%}
    {%- set loop_state = {
        'steps': state['steps'], 'made': 0, 'places': 0, 'since': none,
        'printed': clock.now(),
    } -%}
    {#- Jinja's loops end at 100,000. -#}
    {%- for round in range(100000) if loop_state.steps > 0 -%}
    {%- for step in range(100000) if loop_state.steps > 0 -%}
        {%- set state = dbt_nn.committed_step(dbt_nn.step_function(relation) ~ '()', progress) -%}
        {%- set now = clock.now() -%}
        {%- do loop_state.update({'steps': state['steps']}) -%}
        {%- if loop_state.since is none -%}
            {%- do loop_state.update({'since': now}) -%}
        {%- else -%}
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
                seconds, loop_state.made, loop_state.places, loop_state.steps
            ) if seconds >= 2 or loop_state.made and loop_state.steps == 0 else '',
            due,
        ) -%}
    {%- endfor -%}
    {%- endfor -%}
    {#- The last outputs are of no further step, but belong to the rest. -#}
    {%- call statement('finish', auto_begin=true) -%}
        select {{ dbt_nn.advance_function(relation) }}()
    {%- endcall -%}
    {%- do adapter.commit() -%}
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


{#- Makes the call of a function, commits, and returns the row that the query then gives. -#}
{% macro committed_step(function, progress) -%}
    {%- call statement('step', fetch_result=true, auto_begin=true) -%}
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
    the layers begin anew; before it those that it calls, if the family has any. -#}
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


{#- The function that makes one step: advance, run every layer, sample. -#}
{% macro create_step_function(relation, network, family) -%}
    {%- set is_alone = dbt_nn.family_macro(family, 'is_alone') %}
    create or replace function {{ dbt_nn.step_function(relation) }}()
    returns void language plpgsql as $step$
    declare
        anew constant boolean := {{ dbt_nn.advance_function(relation) }}();
        {#- for which texts the weights are held in memory #}
        held constant text :=
            {%- if is_alone and dbt_nn.is_resident(network) %} case
                when {{ is_alone(network) }} then 'one'
                else 'several'
            end
            {%- else %} 'none'
            {%- endif %};
    begin
        {%- for node in dbt_nn.layers_in_order(network) %}
        perform {{ dbt_nn.forward_function(api.Relation.create(
            schema=node.schema, identifier=node.alias
        )) }}(anew, held);
        {%- endfor %}
        perform {{ dbt_nn.forward_function(relation) }}(anew, held);
    end
    $step$;
{%- endmacro %}


{% macro step_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_step') }}
{%- endmacro %}
