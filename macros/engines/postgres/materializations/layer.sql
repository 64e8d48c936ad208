{#-
    `layer`: an incremental table of activations, one row a place.

    The model's SELECT yields the rows of the frontier. The materialization
    creates the table, makes its program (program.sql) a function that appends the
    rows, and runs that once over every place that is known: the prompts. For
    each later step the network's loop (see generation.sql) calls the function
    again, so the rows that are already there serve as the KV cache.

    A layer that has these places already, from the same SELECT and the same
    layers before it, stays as it is, unless there is --full-refresh. One whose
    table and functions are those that would be made again keeps them and begins
    anew with its rows alone.

    meta (set by the generator for a network's folder):
        network   name of the network, the prefix of its models
        family    prefix of the macros that know its frontier and its loop
        place     the columns that name a place: the primary key, without
                  which a place named twice would double at every layer
        history   what becomes of its rows: append, renew, replace or keep, see policy()
-#}
{% materialization layer, adapter='postgres' %}
    {%- set relation = this.incorporate(type='table') -%}
    {%- set is_result = dbt_nn.policy().keeps_batches -%}

    {%- do dbt_nn.begin_model() -%}
    {{ run_hooks(pre_hooks) }}
    {%- set table = dbt_nn.create_layer(relation, sql, 'table' if is_result else 'unlogged table') -%}
    {%- set nodes = dbt_nn.own_relations_here() -%}
    {%- set functions = dbt_nn.named_locally(
        dbt_nn.create_forward_function(relation, dbt_nn.program(sql)), nodes
    ) -%}
    {%- set state = dbt_nn.state_of(relation, sql, table ~ functions) -%}
    {%- set refresh = not state.exists or not (state.is_defined or is_result) -%}
    {% if state.is_up_to_date %}
        {% call statement('main') -%}
            select 'unchanged'
        {%- endcall %}
    {% else %}
        {% if refresh %}
            {{ drop_relation_if_exists(state.found) }}
        {% endif %}
        {% call statement('main') -%}
            {% if refresh -%}
                {{ table }}
            {%- elif is_result -%}
                {{ dbt_nn.forget(relation) }};
            {%- endif %}
            {{ dbt_nn.enter_network(config.meta_get('network'), nodes) }};
            {% if not state.is_defined -%}
                {{ dbt_nn.completed(functions, relation, sql, state.definition) }}
            {%- endif %}
            select {{ dbt_nn.forward_function(relation) }}(all_places => true);
            {{ dbt_nn.leave_network() }};
        {%- endcall %}
        {% if not state.is_defined %}
            {% do persist_docs(relation, model) %}
        {% endif %}
    {% endif %}
    {%- do dbt_nn.end_model() -%}
    {{ run_hooks(post_hooks) }}
    {% do apply_grants(
        relation, config.get('grants'), should_revoke(state.found, refresh)
    ) %}
    {{ adapter.commit() }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{#-
    What there is of a layer, as the database says (dbt's own list takes longer where
    there are many):

        found           what has its name; none if nothing has
        exists          it is a table, and may stay: there is no --full-refresh
        is_defined      that table and its functions are what `ddl` makes
        is_up_to_date   its rows are those that its SELECT would give, too: see
                        fingerprint(). Images have no fingerprint.
        definition      a digest of `ddl` and of the model's description
-#}
{% macro state_of(relation, sql, ddl) -%}
    {%- set definition = local_md5(ddl ~ model.description) -%}
    {%- set digest = dbt_nn.fingerprint(sql) if dbt_nn.policy().keeps_steps else 'null' -%}
    {%- set rows = run_query("
        select
            known.*,
            known.is_defined and exists (
                select from " ~ dbt_nn.db_function('fingerprints') ~ "
                where relation = " ~ dbt_nn.literal(relation) ~ " and fingerprint = " ~ digest ~ "
            ) as is_up_to_date
        from (
            select
                case class.relkind
                    when 'v' then 'view'
                    when 'm' then 'materialized_view'
                    else 'table'
                end as type,
                class.relkind = 'r' as exists,
                class.relkind = 'r' and coalesce(
                    function.prosrc like '%" ~ dbt_nn.definition_mark(definition) ~ "%', false
                ) as is_defined
            from pg_class as class
            left join pg_proc as function on function.oid
                = to_regprocedure(" ~ dbt_nn.literal(dbt_nn.forward_function(relation) ~ '(boolean, text)') ~ ")
            where class.oid = to_regclass(" ~ dbt_nn.literal(relation) ~ ")
        ) as known
    ").rows -%}
    {%- set state = {
        'found': none,
        'exists': false,
        'is_defined': false,
        'is_up_to_date': false,
        'definition': definition,
    } -%}
    {%- if rows | length > 0 -%}
        {%- do state.update(found=relation.incorporate(type=rows[0].type)) -%}
        {%- if not should_full_refresh() -%}
            {%- do state.update(rows[0].dict()) -%}
        {%- endif -%}
    {%- endif -%}
    {{ return(state) }}
{%- endmacro %}


{#- A comment in a layer's function that says by what it was defined. -#}
{% macro definition_mark(definition='') -%}
    /* definition {{ definition }} */
{%- endmacro %}


{#- A layer's function with what is known only when it is made: that digest, the
    columns that a row replaces, see on_conflict(), and the fingerprint of the rows in
    the network's own table. -#}
{% macro completed(functions, relation, sql, definition) -%}
    {%- if dbt_nn.replaced_columns() in functions -%}
        {%- set columns = [] -%}
        {%- for column in get_columns_in_query(sql)
            | reject('in', config.meta_get('place')) -%}
            {%- set name = adapter.quote(column) -%}
            {%- do columns.append(name ~ ' = excluded.' ~ name) -%}
        {%- endfor -%}
        {%- set functions = functions | replace(dbt_nn.replaced_columns(), columns | join(', ')) -%}
    {%- endif -%}
    {%- if dbt_nn.fingerprint_mark() in functions -%}
        {%- set name = dbt_nn.literal(relation) -%}
        {%- set local_name = dbt_nn.literal(adapter.quote(relation.identifier)) -%}
        {%- set functions = functions | replace(dbt_nn.fingerprint_mark(), "if all_places and "
            ~ local_name ~ "::regclass = " ~ name ~ "::regclass then
            insert into " ~ dbt_nn.db_function('fingerprints') ~ " (relation, fingerprint)
            values (" ~ name ~ ", " ~ dbt_nn.fingerprint(sql) ~ ")
            on conflict (relation) do update set fingerprint = excluded.fingerprint;
        end if;") -%}
    {%- endif -%}
    {{ return(functions | replace(dbt_nn.definition_mark(), dbt_nn.definition_mark(definition))) }}
{%- endmacro %}


{% macro replaced_columns() -%}
    /* columns */
{%- endmacro %}


{% macro fingerprint_mark() -%}
    /* fingerprint */
{%- endmacro %}


{#- A statement that drops the results of what is not asked for any more. -#}
{% macro forget(relation) -%}
    {{ dbt_nn.family_macro(config.meta_get('family'), 'forget')(relation, config.meta_get('network')) }}
{%- endmacro %}


{#-
    What decides the rows of a layer, an expression: a digest of its SELECT, of
    the interventions on it, of the fingerprints of the layers that it reads and, for the first, of what the
    frontier is of.
-#}
{% macro fingerprint(sql) -%}
    {%- set inputs = [] -%}
    {%- for id in model.depends_on.nodes
        if id in graph.nodes and graph.nodes[id].config.materialized == 'layer' -%}
        {%- do inputs.append(dbt_nn.literal(graph.nodes[id].relation_name)) -%}
    {%- endfor -%}
md5('{{ local_md5(sql) }}' ||
    {%- if dbt_nn.is_intervened() %} {{ dbt_nn.intervention_fingerprint() }} ||{% endif %} coalesce(
    {%- if inputs %}
    (
        select string_agg(fingerprint, ',' order by relation)
        from {{ dbt_nn.db_function('fingerprints') }}
        where relation in ({{ inputs | join(', ') }})
    ),
    {%- else %}
    {{ dbt_nn.family_macro(config.meta_get('family'), 'fingerprint')(config.meta_get('network')) }},
    {%- endif %}
    ''
))
{%- endmacro %}


{#- The function that computes a layer's rows: `schema.name_forward`. -#}
{% macro forward_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_forward') }}
{%- endmacro %}


{#-
    DDL of a layer's table. `kind` is 'unlogged table' for activations, which can
    be computed again, else 'table'. A vector stays in its row as long as that
    fits a page (TOAST would copy it at each use), and is never compressed. No plan
    needs statistics of activations, of which autovacuum would keep megabytes.
    A page of rows that a step replaces has room for one more version of each.
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
            where attrelid = {{ dbt_nn.literal(relation) }}::regclass
                and attnum > 0 and attstorage in ('x', 'e')
        loop
            execute format(
                'alter table %1$s alter %2$I set storage external
                {%- if kind == "unlogged table" %}, alter %2$I set statistics 0{% endif %}',
                {{ dbt_nn.literal(relation) }}, column_name
            );
        end loop;
    end
    $body$;

    alter table {{ relation }} set (
        toast_tuple_target = 8160
        {%- if not dbt_nn.policy().keeps_steps %}, fillfactor = 45{% endif %}
    );
    {%- if config.meta_get('place') %}
    alter table {{ relation }}
        add primary key ({{ config.meta_get('place') | join(', ') }});
    {%- endif %}
{%- endmacro %}


{#-
    The function that appends the frontier's rows, or puts them in the place of
    the last step's, or begins anew with all places. `held` says for which texts the
    weights are to be held in memory: for 'several', for 'one', or not. The planner
    settings pin what is best at every size, since plans are made while the tables are
    still empty: ordered index scans, nested loops.

    program   see program()
-#}
{% macro create_forward_function(relation, program) -%}
    {%- set policy = dbt_nn.policy() -%}
    {%- set is_layer = config.get('materialized') == 'layer' -%}
    {%- set family = config.meta_get('family') -%}
    {%- set outdated = none if is_layer else dbt_nn.family_macro(family, 'outdated') -%}
    {%- set on_conflict = dbt_nn.on_conflict() -%}
    {%- if program.band -%}
    {{ dbt_nn.create_band_functions(relation, program) }}
    {%- endif -%}
    {%- if program.several %}

    {{ dbt_nn.create_resident_functions(relation, program.weights, program.as) }}
    {%- endif %}

    create or replace function {{ dbt_nn.forward_function(relation) }}(
        all_places boolean default false, held text default 'none'
    ) returns void language plpgsql
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set jit = off
    as $forward$
    {{ dbt_nn.definition_mark() }}
    #variable_conflict use_column
    {%- if program.band %}
    declare
        work bigint;
        bands integer := 1;
    {%- endif %}
    begin
        {%- if policy.keeps_steps %}
        perform set_config('dbt_nn.all_places', all_places::text, true);
        {%- endif %}
        {%- if not policy.keeps_batches %}
        {#- To truncate makes new files, and searches all of the server's cache for
            the old ones: with few rows it takes longer than to delete them. #}
        if all_places then
            if pg_table_size({{ dbt_nn.literal(relation) }}) > {{ dbt_nn.deleted_at_most() }} then
                truncate {{ relation }};
            else
                delete from {{ relation }};
            end if;
        end if;
        {%- endif %}
        {%- if outdated %}
        {{ outdated(relation, config.meta_get('network')) }};
        {%- endif %}
        {%- if program.band %}
        if all_places or {{ program.work.each_step or not policy.keeps_steps }} then
            {#- an aggregate over no places is NULL #}
            work := coalesce({{ program.work.amount }}, 0);
            bands := {{ dbt_nn.band_count('work') }};
        end if;
        if bands > 1 then
            insert into {{ relation }}
            select * from {{ dbt_nn.bands_function(relation) }}(
                bands, {{ dbt_nn.worker_share('work', 'bands') }}
            )
            {{ on_conflict }};
        {%- if program.step %}
        elsif not all_places then
            insert into {{ relation }}
            {{ program.step }}
            {{ on_conflict }};
        {%- endif %}
        {%- for texts in ('several', 'one') if texts in program %}
        elsif held = '{{ texts }}' and not all_places then
            insert into {{ relation }}
            {{ program[texts] }}
            {{ on_conflict }};
        {%- endfor %}
        else
            insert into {{ relation }}
            {{ program.alone }}
            {{ on_conflict }};
        end if;
        {%- else %}
        insert into {{ relation }}
        {{ program.alone }}
        {{ on_conflict }};
        {%- endif %}
        {%- if dbt_nn.is_intervened() %}
        {{ dbt_nn.intervene(relation) | indent(4) }}
        {%- endif %}
        {%- if is_layer and policy.keeps_steps %}
        {{ dbt_nn.fingerprint_mark() }}
        {%- endif %}
    end
    $forward$;
{%- endmacro %}


{#- Bytes of a table whose rows are deleted, and whose room is vacuumed later,
    where all begin anew; a larger one is truncated. -#}
{% macro deleted_at_most() -%}
    {{ return(1048576) }}
{%- endmacro %}


{#-
    What becomes of a row whose place has one: what a run that was stopped had
    already made stays, and a step's row becomes the next version of the last
    step's, on the same page. To truncate the table instead takes longer: it makes
    eight files, and every function that reads them is planned again.
-#}
{% macro on_conflict() -%}
    {%- set policy = dbt_nn.policy() -%}
    {%- set place = config.meta_get('place') -%}
    {%- if not policy.keeps_steps -%}
    on conflict ({{ place | join(', ') }}) do update set {{ dbt_nn.replaced_columns() }}
    {%- elif policy.keeps_batches -%}
    on conflict do nothing
    {%- endif %}
{%- endmacro %}
