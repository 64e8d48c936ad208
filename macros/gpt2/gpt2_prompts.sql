{#-
    The prompts with their generation options, one row a sequence: what the
    network has to complete, and what it has completed.

    prompts     relation: prompt_id, and prompt or prompt_token_ids; a column
                named like an option (see generation_options) sets it for the row
    options     dict of options for all rows
    checkpoint  its schema
    vocabulary, merges, config   of the checkpoint
    earlier     the table itself where it is there already: of a prompt that is
                unchanged no row is given
    -> (sequence_id, prompt_id, prompt, prompt_token_ids, the options, request,
       error, completion_id, checkpoint, batch, finished_at)

    Everything in a prompt is literal text; an empty one is read as the
    checkpoint's bos token, as transformers' generate() does. `request` is a
    digest of all that decides the completion, the checkpoint included;
    completion_id names this attempt, to which tokens and layers belong.

    A row that cannot be completed says why in `error`. What concerns all rows
    (an option of all, a prompt_id that is NULL or there twice, a checkpoint
    without a tokenizer) raises an error, before anything of an earlier run is
    replaced.
-#}
{% macro gpt2_prompts(
    prompts, options, checkpoint, vocabulary, merges, config, earlier=none
) -%}
    {%- for name in options if name not in generation_options() -%}
        {{ exceptions.raise_compiler_error(
            "unknown generation option '" ~ name ~ "'; known are "
            ~ generation_options() | join(', ')
        ) }}
    {%- endfor -%}
with options as materialized (
    select jsonb_strip_nulls({{ json_literal(options) }}) as options
),

checked_options as materialized (
    select options
    from options
    where {{ db_function('check_input') }}(
        'the generation options: ' || case
            {{ generation_option_problems() | indent(8) }}
        end
    )
),

prompts as (
    select
        prompts.prompt_id,
        to_jsonb(prompts) as fields,
        count(*) over (partition by prompts.prompt_id) as namesakes
    from {{ prompts }} as prompts
),

requested as materialized (
    select
        prompts.prompt_id,
        prompts.fields,
        checked_options.options || (
            select coalesce(jsonb_object_agg(field.key, field.value), '{}')
            from jsonb_each(jsonb_strip_nulls(prompts.fields)) as field
            where field.key in (
                {%- for name in generation_options() %}
                '{{ name }}'{{ ',' if not loop.last }}
                {%- endfor %}
            )
        ) as options
    from prompts
    cross join checked_options
    where {{ db_function('check_input') }}(
        'the relation of prompts: ' || case
            when prompt_id is null then 'prompt_id is NULL'
            when namesakes > 1
                then format('prompt_id %s is there %s times', prompt_id, namesakes)
            when not fields ?| array['prompt', 'prompt_token_ids']
                then 'has neither a column prompt nor a column prompt_token_ids'
        end
    )
),

digested as (
    select
        requested.*,
        md5(concat_ws(
            '/',
            {{ checkpoint_digest(checkpoint) }},
            fields -> 'prompt',
            fields -> 'prompt_token_ids',
            options
        ))::uuid as request
    from requested
),

checked as materialized (
    select
        {%- if earlier %}
        (select coalesce(max(sequence_id), 0) from {{ earlier }}) +
        {%- endif %}
        row_number() over (order by prompt_id) as sequence_id,
        digested.*,
        jsonb_typeof(fields -> 'prompt_token_ids') is not distinct from 'array'
            as is_given,
        case
            when fields ->> 'prompt' is null
                and jsonb_typeof(fields -> 'prompt_token_ids') is distinct from 'array'
                then 'has neither a prompt nor an array prompt_token_ids'
            when jsonb_typeof(fields -> 'prompt_token_ids') = 'array' and exists (
                select
                from jsonb_array_elements_text(fields -> 'prompt_token_ids') as element
                where element is null or not pg_input_is_valid(element, 'integer')
            )
                then format(
                    'prompt_token_ids must be token ids, not %s',
                    fields -> 'prompt_token_ids'
                )
            {{ generation_option_problems() | indent(8) }}
        end as error
    from digested
    {%- if earlier %}
    where not exists (
        select from {{ earlier }} as earlier
        where earlier.prompt_id = digested.prompt_id
            and earlier.request = digested.request
    )
    {%- endif %}
),

texts as materialized (
    select sequence_id, fields ->> 'prompt' as prompt
    from checked
    where error is null and not is_given
),

encoded as materialized (
    select
        sequence_id,
        array_agg(token_id order by position) as ids
    from (
        {{ byte_pair_encode('texts', vocabulary, merges) | indent(8) }}
    ) as token
    group by sequence_id
),

tokenized as materialized (
    select
        checked.*,
        case
            when checked.error is not null then null
            when token.ids = '{}'
                then array[{{ hyperparameter(config, 'bos_token_id') }}]
            else token.ids
        end as token_ids
    from checked
    left join encoded using (sequence_id)
    cross join lateral (
        select case
            when checked.error is not null then null
            when checked.is_given then array(
                select element::integer
                from jsonb_array_elements_text(checked.fields -> 'prompt_token_ids')
                    with ordinality as given (element, i)
                order by i
            )
            else coalesce(encoded.ids, '{}')
        end as ids
    ) as token
    where {{ db_function('check_input') }}(
        case
            when checked.error is null
                and not checked.is_given
                and checked.fields ->> 'prompt' <> ''
                and token.ids = '{}'
                then format(
                    'prompt_id %s: the checkpoint has no tokenizer: give '
                    'prompt_token_ids instead of a prompt', checked.prompt_id
                )
        end
    )
),

bounded as (
    select
        tokenized.*,
        coalesce(
            error,
            case
                when cardinality(token_ids) > {{ hyperparameter(config, 'n_positions') }}
                    then format(
                        'the prompt has %s tokens, more than the context of %s '
                        '(n_positions): shorten it',
                        cardinality(token_ids),
                        {{ hyperparameter(config, 'n_positions') }}
                    )
                when unknown.token_id is not null
                    then format(
                        'token id %s is not in the vocabulary of %s',
                        unknown.token_id, {{ hyperparameter(config, 'vocab_size') }}
                    )
            end
        ) as problem
    from tokenized
    cross join lateral (
        select max(token_id) as token_id
        from unnest(tokenized.token_ids) as token_id
        where token_id < 0
            or token_id >= {{ hyperparameter(config, 'vocab_size') }}
    ) as unknown
),

{# of a row with an error the defaults: its own may not have their types #}
accepted as materialized (
    select
        bounded.*,
        case when problem is null then bounded.options else '{}' end as valid_options
    from bounded
),

typed as (
    select
        sequence_id::integer as sequence_id,
        prompt_id,
        fields ->> 'prompt' as prompt,
        token_ids as prompt_token_ids,
        coalesce(
            (valid_options ->> 'do_sample')::boolean,
            valid_options ?| array['temperature', 'top_k', 'top_p', 'min_p']
        ) as do_sample,
        {%- for name, option in generation_options().items()
            if name not in ('do_sample', 'prompt_logprobs', 'stop_strings') %}
        coalesce(
            (valid_options ->> '{{ name }}')::{{ option.type }}, {{ option.default }}
        ) as {{ name }},
        {%- endfor %}
        coalesce(
            (valid_options ->> 'prompt_logprobs')::boolean,
            (valid_options ->> 'max_new_tokens')::integer = 0,
            false
        ) as prompt_logprobs,
        case
            when jsonb_typeof(valid_options -> 'stop_strings') = 'string'
                then array[valid_options ->> 'stop_strings']
            else array(
                select jsonb_array_elements_text(valid_options -> 'stop_strings')
            )
        end as stop_strings,
        request,
        problem as error
    from accepted
),

filled as (
    select
        typed.*,
        ceil({{ gpt2_batches_filled(config, checkpoint) | indent(8) }}) as batches_filled
    from typed
)

select
    {%- for name in ['sequence_id', 'prompt_id', 'prompt', 'prompt_token_ids']
        + generation_options() | list + ['request', 'error'] %}
    {{ name }},
    {%- endfor %}
    gen_random_uuid() as completion_id,
    '{{ checkpoint }}' as checkpoint,
    case
        when error is null then (
            dense_rank() over (order by batches_filled)
            {%- if earlier %}
            + (select coalesce(max(batch), 0) from {{ earlier }})
            {%- endif %}
        )::integer
    end as batch,
    case when error is not null then now() end as finished_at
from filled
{%- endmacro %}


{#- Branches of a CASE: what is wrong with the jsonb `options`. -#}
{% macro generation_option_problems() -%}
{%- for name, option in generation_options().items() if option.type != 'jsonb' %}
    when not pg_input_is_valid(options ->> '{{ name }}', '{{ option.type }}')
        then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
    {%- if option.valid %}
    when not ({{ option.valid | replace('{}', "(options ->> '" ~ name ~ "')::" ~ option.type) }})
        then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
    {%- endif %}
{%- endfor %}
    when jsonb_typeof(options -> 'stop_strings') not in ('array', 'string')
        or jsonb_path_exists(
            options -> 'stop_strings', '$[*] ? (@.type() != "string" || @ == "")'
        )
        then format(
            'stop_strings must be a text or an array of texts, none empty, not %s',
            options -> 'stop_strings'
        )
{%- endmacro %}


{#-
    A statement that stops the run where the keys of a relation of prompts cannot
    be compared with those of earlier runs.
-#}
{% macro check_prompt_ids(table, prompts) -%}
    {%- if execute and not should_full_refresh() %}
    select {{ db_function('check_input') }}(
        format(
            'prompt_id of {{ prompts }} is of type %s, and of earlier runs in '
            '{{ table }} %s: choose another schema (DBT_NN_SCHEMA), or begin anew '
            'with --full-refresh',
            given.type, known.type
        )
    )
    from (
        select atttypid::regtype as type
        from pg_attribute
        where attrelid = to_regclass('{{ prompts }}') and attname = 'prompt_id'
    ) as given
    cross join (
        select atttypid::regtype as type
        from pg_attribute
        where attrelid = to_regclass('{{ table }}') and attname = 'prompt_id'
    ) as known
    where (select typcategory from pg_type where oid = given.type)
        <> (select typcategory from pg_type where oid = known.type)
    {%- endif %}
{%- endmacro %}


{#- A statement that forgets prompts which were withdrawn before they were
    complete. -#}
{% macro forget_withdrawn_prompts(table, prompts) -%}
    delete from {{ table }} as earlier
    where earlier.finished_at is null
        and not exists (
            select from {{ prompts }} as prompts
            where prompts.prompt_id = earlier.prompt_id
        )
{%- endmacro %}


{#-
    The generation options: their names, meanings and defaults are those of
    transformers' GenerationConfig (so top_k is 50 once sampling is on; 0 turns
    it off). do_sample need not be given: any of temperature, top_k, top_p and
    min_p turns it on. prompt_logprobs is vLLM's: score the prompt's own tokens;
    it is on where max_new_tokens is 0. `valid` is a condition on the value {}.
-#}
{% macro generation_options() -%}
    {{ return({
        'max_new_tokens': {
            'type': 'integer', 'default': 32, 'valid': '{} >= 0',
            'must_be': 'a whole number, 0 or more',
        },
        'do_sample': {
            'type': 'boolean', 'default': 'null', 'must_be': 'true or false',
        },
        'temperature': {
            'type': 'float8', 'default': 1, 'valid': "{} > 0 and {} < 'inf'",
            'must_be': 'a number above 0 (for greedy decoding, leave it out)',
        },
        'top_k': {
            'type': 'integer', 'default': 50, 'valid': '{} >= 0',
            'must_be': 'a whole number, 0 or more',
        },
        'top_p': {
            'type': 'float8', 'default': 1, 'valid': '{} > 0 and {} <= 1',
            'must_be': 'a number above 0 and at most 1',
        },
        'min_p': {
            'type': 'float8', 'default': 0, 'valid': '{} >= 0 and {} <= 1',
            'must_be': 'a number from 0 to 1',
        },
        'repetition_penalty': {
            'type': 'float8', 'default': 1, 'valid': "{} > 0 and {} < 'inf'",
            'must_be': 'a number above 0',
        },
        'seed': {
            'type': 'bigint', 'default': 0, 'must_be': 'a whole number',
        },
        'prompt_logprobs': {
            'type': 'boolean', 'default': 'null', 'must_be': 'true or false',
        },
        'stop_strings': {'type': 'jsonb'},
    }) }}
{%- endmacro %}


{% macro json_literal(value) -%}
    '{{ tojson(value) | replace("'", "''") }}'::jsonb
{%- endmacro %}
