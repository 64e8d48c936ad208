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
    <family>_progress(), <family>_pace() and <family>_problems(); for text
    <family>_is_alone() as well.
-#}
{% materialization generation, adapter='postgres' %}
    {%- set relation = this.incorporate(type='table') -%}
    {%- set family = config.meta_get('family') -%}
    {%- set network = config.meta_get('network') -%}
    {%- set is_replaced = config.meta_get('history') == 'newest_step' -%}

    {{ run_hooks(pre_hooks) }}
    {% do run_query(context[family ~ '_check'](network)) %}
    {%- set table = create_layer(relation, sql, 'table') -%}
    {%- set functions = create_forward_function(relation, sql)
        ~ create_advance_function(relation, network, family)
        ~ create_step_function(relation, network, family) -%}
    {%- set state = state_of(relation, sql, table ~ functions) -%}
    {%- set refresh = not state.exists or is_replaced and not state.is_defined -%}
    {% if refresh %}
        {{ drop_relation_if_exists(state.found) }}
    {% endif %}
    {% if not state.is_defined or not is_replaced %}
        {% call statement('create') -%}
            {% if refresh -%}
                {{ table }}
            {%- else -%}
                {{ forget(relation) }};
            {%- endif %}
            {% if not state.is_defined -%}
                {{ completed(functions, sql, state.definition) }}
            {%- endif %}
        {%- endcall %}
    {% endif %}
    {% if not state.is_defined %}
        {% do persist_docs(relation, model) %}
    {% endif %}
    {{ adapter.commit() }}

    {% do run_loop(relation, network, family) %}

    {% call statement('main') -%}
        analyze {{ relation }}
    {%- endcall %}
    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{#-
    Samples from the layers' first run (the prompt), then makes step after step
    while progress() counts any as left. Each is committed.
-#}
{% macro run_loop(relation, network, family) -%}
    {%- set progress = context[family ~ '_progress'](relation, network) -%}
    {%- set clock = modules.datetime.datetime -%}
    {%- set state = committed_step(forward_function(relation) ~ '(true)', progress) -%}
    {%- do print_progress(state['steps'], '', state['news']) -%}
    {%- set loop_state = {'steps': state['steps'], 'made': 0, 'places': 0} -%}
    {%- set started = clock.now() -%}
    {#- Jinja's loops end at 100,000. -#}
    {%- for round in range(100000) if loop_state.steps > 0 -%}
    {%- for step in range(100000) if loop_state.steps > 0 -%}
        {%- set state = committed_step(step_function(relation) ~ '()', progress) -%}
        {%- do loop_state.update({
            'steps': state['steps'],
            'made': loop_state.made + 1,
            'places': loop_state.places + state['places'],
        }) -%}
        {%- do print_progress(
            loop_state.steps,
            context[family ~ '_pace'](
                (clock.now() - started).total_seconds(),
                loop_state.made,
                loop_state.places,
                loop_state.steps,
            ),
            state['news'],
        ) -%}
    {%- endfor -%}
    {%- endfor -%}
    {#- The last outputs are of no further step, but belong to the rest. -#}
    {%- call statement('finish', auto_begin=true) -%}
        select {{ advance_function(relation) }}()
    {%- endcall -%}
    {%- do adapter.commit() -%}
    {%- do print_problems(network, family) -%}
{%- endmacro %}


{#- Says what could not be made, and why. -#}
{% macro print_problems(network, family) -%}
    {%- set problems = run_query(context[family ~ '_problems'](network)).rows[0] -%}
    {%- if problems[0] > 0 -%}
        {%- do print('rows with an error: %s, for example %s' | format(
            problems[0], problems[1]
        )) -%}
    {%- endif -%}
{%- endmacro %}


{% macro print_progress(steps, rate, news) -%}
    {%- do print('%4d left  %24s  %s' | format(steps, rate, news)) -%}
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
    the layers begin anew. -#}
{% macro create_advance_function(relation, network, family) -%}
    create or replace function {{ advance_function(relation) }}()
    returns boolean language plpgsql as $advance$
    {{ context[family ~ '_advance'](relation, network) }}
    $advance$;
{%- endmacro %}


{% macro advance_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_advance') }}
{%- endmacro %}


{#- The function that makes one step: advance, run every layer, sample. -#}
{% macro create_step_function(relation, network, family) -%}
    create or replace function {{ step_function(relation) }}()
    returns void language plpgsql as $step$
    declare
        anew constant boolean := {{ advance_function(relation) }}();
    begin
        {%- if config.meta_get('history') != 'newest_step' %}
        {%- if is_resident(network) %}
        perform set_config(
            'dbt_nn.resident',
            case
                when {{ context[family ~ '_is_alone'](network) }} then 'one'
                else 'several'
            end,
            true
        );
        {%- endif %}
        {%- endif %}
        {%- for node in layers_in_order(network) %}
        perform {{ forward_function(api.Relation.create(
            schema=node.schema, identifier=node.alias
        )) }}(anew);
        {%- endfor %}
        perform {{ forward_function(relation) }}(anew);
    end
    $step$;
{%- endmacro %}


{% macro step_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_step') }}
{%- endmacro %}
