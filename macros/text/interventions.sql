{#-
    Interventions: changes of activations where a layer writes them. Ablation and
    activation patching are then a run and a join.

    The var <network>_interventions names a relation of the user's, a row an
    intervention: intervention_columns(). read_interventions() checks its rows and keeps
    them for the layers, which apply them: materializations/intervene.sql. The request of
    a prompt has a digest of those that decide it, so that it is completed anew when they
    change: intervention_digests().
-#}

{#- The columns of the user's relation, a list. No others are taken: one of a wrong name
    would go unnoticed. -#}
{% macro intervention_columns() -%}
    {{ return([
        'prompt_id', 'layer', 'head', 'feature', 'position', 'what', 'value',
        'source_prompt_id', 'source_position', 'ordinal',
    ]) }}
{%- endmacro %}


{#- What an intervention may do, a list. -#}
{% macro intervention_kinds() -%}
    {{ return(['zero', 'mean', 'scale', 'add', 'set', 'replace']) }}
{%- endmacro %}


{#- A prompt_id as a row of interventions has it, whatever its type: an expression, text. -#}
{% macro prompt_key(prompt_id) -%}
    (to_jsonb({{ prompt_id }}) #>> '{}')
{%- endmacro %}


{#-
    What the interventions add to the request of a prompt: a SELECT of (prompt_id,
    digest), a row for each prompt that they concern.

    Prompts that read from each other are completed together: those that a row with
    `replace` names, and all prompts where a row has `mean`. Their digest is of them all.

    requested       relation of (prompt_id, fields, options)
    interventions   the user's relation
-#}
{% macro intervention_digests(requested, interventions) -%}
with interventions as materialized (
    select
        given.fields,
        given.fields ->> 'prompt_id' as prompt_key,
        given.fields ->> 'source_prompt_id' as source_key,
        rtrim(given.fields ->> 'what') as what
    from (
        select {{ dbt_nn.given_fields(
            'to_jsonb(dbt_nn_row)', dbt_nn.intervention_columns()
        ) | indent(8) }} as fields
        from {{ dbt_nn.whole_relation(interventions) }} as dbt_nn_row
    ) as given
),

concerned as materialized (
    select
        requested.prompt_id,
        concat_ws(
            '/', requested.fields -> 'prompt', requested.fields -> 'prompt_token_ids', requested.options
        ) as request,
        (
            select string_agg(own.fields::text, '/' order by own.fields::text)
            from interventions as own
            where coalesce(own.prompt_key = {{ dbt_nn.prompt_key('requested.prompt_id') }}, true)
        ) as own,
        exists (
            select from interventions as shared
            where shared.what = 'mean'
                or shared.what = 'replace' and (
                    coalesce(shared.prompt_key = {{ dbt_nn.prompt_key('requested.prompt_id') }}, true)
                    or shared.source_key = {{ dbt_nn.prompt_key('requested.prompt_id') }}
                )
        ) as is_shared
    from {{ requested }} as requested
)

select
    concerned.prompt_id,
    concat_ws(
        '/',
        concerned.own,
        case
            when concerned.is_shared then (
                select md5(string_agg(
                    concat_ws('/', shared.request, shared.own), '/' order by shared.prompt_id
                ))
                from concerned as shared
                where shared.is_shared
            )
        end
    ) as digest
from concerned
where concerned.own is not null or concerned.is_shared
{%- endmacro %}


{#-
    Statements that check the user's rows and keep them for the layers, in the
    transaction that makes the prompts: a wrong row stops the run and nothing is replaced.

    prompts         the model of prompts
    given_prompts   the user's relation of them
    interventions   the user's relation; none: nothing is to be done
    config          the checkpoint's
-#}
{% macro read_interventions(prompts, given_prompts, interventions, config_relation) -%}
    {%- if execute and interventions %}
    {%- set network = config.meta_get('network') %}
    {{ dbt_nn.create_intervention_tables() }}

    delete from {{ dbt_nn.intervention_table() }} where network = '{{ network }}';

    insert into {{ dbt_nn.intervention_table() }}
    {{ dbt_nn.resolved_interventions(
        prompts, given_prompts, interventions, config_relation, network
    ) }}
    {%- endif %}
{%- endmacro %}


{#- The rows of the user's relation by the names of the network's own, checked: a SELECT
    of the columns of intervention_table(). -#}
{% macro resolved_interventions(
    prompts, given_prompts, interventions, config_relation, network
) -%}
    {%- set names = dbt_nn.intervention_columns() -%}
    {%- set numbers = ['head', 'feature', 'position', 'source_position'] -%}
    {%- set kinds = dbt_nn.intervention_kinds() -%}
with given as materialized (
    select
        row_number() over ()::integer as number,
        {{ dbt_nn.given_fields('to_jsonb(dbt_nn_row)', names) | indent(8) }} as fields,
        to_jsonb(dbt_nn_row) as all_fields,
        pg_typeof(dbt_nn_row) as row_type
    from {{ dbt_nn.whole_relation(interventions) }} as dbt_nn_row
),

given_columns as materialized (
    {{ dbt_nn.given_columns('given') | indent }}
),

relation as materialized (
    select (
        select format(
            'has a column %s, and may have {{ names | join(", ") }}',
            given_columns.name
        )
        from given_columns
        where given_columns.name not in ({{ dbt_nn.literals(names) }})
        order by given_columns.name
        limit 1
    ) as problem
),

layers as materialized (
    select
        layer.model,
        nullif(layer.hook, '') as hook,
        layer.heads,
        case
            when layer.heads is not null then layer.heads * {{ dbt_nn.head_dim(config_relation) | indent(8) }}
            when layer.width_key = 'intermediate_size'
                then {{ dbt_nn.hyperparameter(config_relation, 'intermediate_size') | indent(16) }}
            when layer.width_key = '2 * head_dim' then 2 * {{ dbt_nn.head_dim(config_relation) | indent(8) }}
            else {{ dbt_nn.hyperparameter(config_relation, 'hidden_size') | indent(8) }}
        end as width
    from (
        select
            named.*,
            case named.heads_key
                {%- for key in ('num_attention_heads', 'num_key_value_heads') %}
                when '{{ key }}' then {{ dbt_nn.hyperparameter(config_relation, key) | indent(16) }}
                {%- endfor %}
            end as heads
        from (
            values
        {%- for node in dbt_nn.intervention_layers(network) %}
        (
            {{- dbt_nn.literal(node.name) }}, {{ dbt_nn.literal(node.config.meta.hook or '') }}
            {{- ', ' ~ dbt_nn.literal(node.config.meta.heads or '') }}
            {{- ', ' ~ dbt_nn.literal(node.config.meta.width or '') -}}
        ){{ ',' if not loop.last }}
        {%- endfor %}
        ) as named (model, hook, heads_key, width_key)
    ) as layer
),

{# the prompts of the run: `reach` is how many places the layers may have of one #}
known as materialized (
    select
        {{ dbt_nn.prompt_key('prompts.prompt_id') }} as prompt_key,
        prompts.sequence_id,
        prompts.error,
        prompts.batch,
        prompts.finished_at is not null as is_finished,
        cardinality(prompts.prompt_token_ids) as tokens,
        least(
            {{ dbt_nn.hyperparameter(config_relation, 'max_position_embeddings') | indent(12) }},
            cardinality(prompts.prompt_token_ids) + greatest(
                prompts.max_new_tokens - 1,
                (
                    select max(jsonb_array_length(choice.token_ids)) - 1
                    from jsonb_array_elements(prompts.choice_token_ids) as choice (token_ids)
                ),
                0
            )
        ) as reach
    from {{ prompts }} as prompts
    where {{ dbt_nn.prompt_key('prompts.prompt_id') }} in (
        select {{ dbt_nn.prompt_key('dbt_nn_row.prompt_id') }}
        from {{ dbt_nn.whole_relation(given_prompts) }} as dbt_nn_row
    )
),

named as materialized (
    select
        given.number,
        given.fields,
        layer.model,
        layer.heads,
        layer.width,
        rtrim(given.fields ->> 'what') as what
    from given
    cross join relation
    left join layers as layer
        on layer.model in (
            rtrim(given.fields ->> 'layer'),
            '{{ network }}_' || lower(replace(rtrim(given.fields ->> 'layer'), '.', '_'))
        )
        or layer.hook = rtrim(given.fields ->> 'layer')
    where {{ dbt_nn.db_function('check_input') }}(
        {{ dbt_nn.intervention_message(interventions) }} || case
            when relation.problem is not null then relation.problem
            when not given.all_fields ?& array['layer', 'what']
                then 'has no column ' || case
                    when given.all_fields ? 'layer' then 'what' else 'layer'
                end || ': it needs layer and what'
        end
    )
),

checked as materialized (
    select named.*
    from named
    where {{ dbt_nn.db_function('check_input') }}(
        {{ dbt_nn.intervention_message(interventions, 'named.fields') }} || case
            when not fields ? 'layer' then 'layer is NULL: give the name of a layer'
            when model is null
                then format(
                    'no layer is named %s: %sGive the path of one in the state_dict '
                    '(h.0.attn), its model ({{ network }}_h_0_attn) or its name in '
                    'TransformerLens (blocks.0.attn.hook_z)',
                    fields -> 'layer',
                    'did you mean ' || (
                        select {{ dbt_nn.db_function('meant_name') }}(
                            case
                                when strpos(layer.name, '{{ network }}_') = 1 or strpos(layer.name, 'hook_') > 0
                                    then layer.name
                                else '{{ network }}_' || replace(layer.name, '.', '_')
                            end,
                            (
                                select array_agg(model) || array_agg(hook) filter (where hook is not null)
                                from layers
                            )
                        )
                        from (select lower(rtrim(fields ->> 'layer')) as name) as layer
                    ) || '? '
                )
            when what is null
                then 'what is NULL: give one of {{ kinds | join(", ") }}'
            when what not in ({{ dbt_nn.literals(kinds) }})
                then format(
                    'what is %s: give one of {{ kinds | join(", ") }}', fields -> 'what'
                )
            {%- for name in numbers %}
            when not pg_input_is_valid(fields ->> '{{ name }}', 'integer')
                then format('{{ name }} is %s: give a whole number, from 0', fields -> '{{ name }}')
            when (fields ->> '{{ name }}')::integer < 0
                then format('{{ name }} is %s: give a whole number, from 0', fields -> '{{ name }}')
            {%- endfor %}
            when fields ?& array['head', 'feature']
                then 'has a head and a feature: give one of them, and count features '
                    'over all heads'
            when fields ? 'head' and heads is null
                then format(
                    'head goes with a layer of queries, keys, values or attention, and '
                    '%s has no heads', model
                )
            when (fields ->> 'head')::integer >= heads
                then format(
                    'head is %s, and %s has %s: give 0 to %s',
                    fields ->> 'head', model, heads, heads - 1
                )
            when (fields ->> 'feature')::integer >= width
                then format(
                    'feature is %s, and %s has %s: give 0 to %s',
                    fields ->> 'feature', model, width, width - 1
                )
            when not pg_input_is_valid(fields ->> 'ordinal', 'numeric')
                then format('ordinal is %s: give a number', fields -> 'ordinal')
            when what in ('scale', 'add', 'set') and not fields ? 'value'
                then format('value is NULL, and %s needs a number', what)
            when what not in ('scale', 'add', 'set') and fields ? 'value'
                then format('has a value, which goes with scale, add and set: %s takes none', what)
            when not pg_input_is_valid(fields ->> 'value', 'real')
                then format('value is %s: give a number that float32 has', fields -> 'value')
            when (fields ->> 'value')::real in ('NaN', 'Infinity', '-Infinity')
                then format('value is %s: give a number that float32 has', fields -> 'value')
            when what = 'replace' and not fields ? 'source_prompt_id'
                then 'source_prompt_id is NULL, and replace needs the prompt from which it takes'
            when what <> 'replace' and fields ?| array['source_prompt_id', 'source_position']
                then format(
                    'has a source, which goes with replace: %s takes none', what
                )
        end
    )
),

typed as materialized (
    select
        checked.*,
        prompt.sequence_id,
        prompt.tokens,
        (checked.fields ->> 'position')::integer as position,
        coalesce((checked.fields ->> 'head')::integer * size.n, (checked.fields ->> 'feature')::integer, 0)
        as first_feature,
        coalesce(
            ((checked.fields ->> 'head')::integer + 1) * size.n - 1,
            (checked.fields ->> 'feature')::integer,
            checked.width - 1
        ) as last_feature,
        (checked.fields ->> 'value')::real as value,
        (checked.fields ->> 'ordinal')::numeric as ordinal,
        source.sequence_id as source_sequence_id,
        {# which place is read is known at once, unless it is each place's own #}
        coalesce(checked.fields ->> 'source_position', checked.fields ->> 'position')::integer
        as source_position,
        source.tokens as source_tokens,
        source.batch as source_batch,
        source.error as source_error,
        source.is_finished as is_source_finished
    from checked
    cross join lateral (select checked.width / checked.heads as n) as size
    left join known as prompt
        on prompt.prompt_key = checked.fields ->> 'prompt_id'
    left join known as source
        on source.prompt_key = checked.fields ->> 'source_prompt_id'
),

problems as materialized (
    select
        typed.number,
        case
            when typed.fields ? 'prompt_id' and typed.sequence_id is null
                then format('prompt_id %s is not among the prompts', typed.fields -> 'prompt_id')
            when typed.position >= (
                select max(known.reach) from known
                where known.error is null
                    and coalesce(known.sequence_id = typed.sequence_id, true)
            )
                then format(
                    'position is %s, and the layers have no such place of %s: the '
                    'longest text has %s, its last token is never read',
                    typed.position,
                    coalesce('prompt_id ' || (typed.fields ->> 'prompt_id'), 'any prompt'),
                    (
                        select max(known.reach) from known
                        where known.error is null
                            and coalesce(known.sequence_id = typed.sequence_id, true)
                    )
                )
            when typed.what = 'replace' and typed.source_sequence_id is null
                then format(
                    'source_prompt_id %s is not among the prompts: to replace by what '
                    'another prompt has, both must be of the same run',
                    typed.fields -> 'source_prompt_id'
                )
            when typed.source_error is not null
                then format(
                    'the prompt of source_prompt_id %s has an error: %s',
                    typed.fields -> 'source_prompt_id', typed.source_error
                )
            when typed.source_position >= typed.source_tokens
                then format(
                    'source_prompt_id %s has %s tokens, and there is no position %s to '
                    'take from', typed.fields -> 'source_prompt_id', typed.source_tokens,
                    typed.source_position
                )
            when longer.tokens is not null
                then format(
                    'prompt_id %s has %s tokens and source_prompt_id %s has %s: give a '
                    'position, or prompts of the same length',
                    longer.prompt_key, longer.tokens,
                    typed.fields -> 'source_prompt_id', typed.source_tokens
                )
            when apart.prompt_key is not null
                then format(
                    'prompt_id %s and %s are in different batches, and interventions '
                    'with %s need one: raise the vars batch_prompts and batch_memory',
                    apart.prompt_key,
                    coalesce(
                        'source_prompt_id ' || (typed.fields ->> 'source_prompt_id'), 'others'
                    ),
                    typed.what
                )
            when other.fields is not null
                then format(
                    'changes activations that the row %s changes, too: give both an '
                    'ordinal, the later one holds', other.fields
                )
        end as problem
    from typed
    left join lateral (
        select known.prompt_key, known.tokens
        from known
        where typed.what = 'replace'
            and typed.source_position is null
            and known.error is null
            and known.tokens > typed.source_tokens
            and coalesce(known.sequence_id = typed.sequence_id, true)
        order by known.sequence_id
        limit 1
    ) as longer on true
    left join lateral (
        select known.prompt_key
        from known
        where not known.is_finished
            and coalesce(known.sequence_id = typed.sequence_id, true)
            and case typed.what
                when 'replace' then typed.is_source_finished or known.batch <> typed.source_batch
                when 'mean' then exists (
                    select from known as another
                    where not another.is_finished and another.batch <> known.batch
                )
            end
        order by known.sequence_id
        limit 1
    ) as apart on true
    left join lateral (
        select other.fields
        from typed as other
        where other.model = typed.model
            and other.number > typed.number
            and coalesce(other.sequence_id = typed.sequence_id, true)
            and coalesce(other.position = typed.position, true)
            and other.first_feature <= typed.last_feature
            and other.last_feature >= typed.first_feature
            and coalesce(other.ordinal = typed.ordinal, true)
        order by other.number
        limit 1
    ) as other on true
)

select
    '{{ network }}' as network,
    typed.model as layer,
    typed.number,
    typed.sequence_id,
    typed.position,
    typed.first_feature,
    typed.last_feature,
    typed.what,
    typed.value,
    typed.ordinal,
    typed.source_sequence_id,
    typed.source_position
from typed
inner join problems using (number)
where {{ dbt_nn.db_function('check_input') }}(
    {{ dbt_nn.intervention_message(interventions, 'typed.fields') }} || problems.problem
)
{%- endmacro %}


{#- How a message about the user's relation begins, or about a row of it: an expression. -#}
{% macro intervention_message(interventions, fields=none) -%}
    'the relation of interventions '
    || {{ dbt_nn.literal(dbt_nn.whole_relation(interventions)) }} || ': '
    {%- if fields %} || 'the row ' || {{ fields }}::text || ' ' {%- endif %}
{%- endmacro %}


{#- The layers whose activations may be changed, graph nodes: those that have a vector of
    each place of a text. -#}
{% macro intervention_layers(network) -%}
    {%- set nodes = [] -%}
    {%- for node in dbt_nn.network_nodes()
        if node.config.meta.network == network
        and node.package_name == model.package_name
        and node.config.materialized == 'layer'
        and node.config.meta.place == ['sequence_id', 'position']
        and not dbt_nn.policy(node.config.meta.history or 'append').keeps_batches
        and 'activation' in node.columns -%}
        {%- do nodes.append(node) -%}
    {%- endfor -%}
    {{ return(nodes) }}
{%- endmacro %}
