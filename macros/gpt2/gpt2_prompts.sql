{#-
    The prompts of a run with their generation options, one row a sequence.

    prompts   relation: prompt_id, and prompt or prompt_token_ids; a column
              named like an option (see generation_options) sets it for the row
    options   dict of options for all rows
    config    the checkpoint's config
    -> (sequence_id, prompt_id, prompt, prompt_token_ids, the options)

    Everything in a prompt is literal text. Bad input raises an error that
    names the prompt, before anything of an earlier run is replaced.
-#}
{% macro gpt2_prompts(prompts, options, config) -%}
    {%- for name in options if name not in generation_options() -%}
        {{ exceptions.raise_compiler_error(
            "unknown generation option '" ~ name ~ "'; known are "
            ~ generation_options() | join(', ')
        ) }}
    {%- endfor -%}
with prompts as (
    select
        row_number() over (order by prompts.prompt_id) as sequence_id,
        prompts.prompt_id,
        to_jsonb(prompts) as fields,
        jsonb_strip_nulls({{ json_literal(options) }})
            || jsonb_strip_nulls(to_jsonb(prompts)) as options,
        count(*) over (partition by prompts.prompt_id) as namesakes
    from {{ prompts }} as prompts
),

checked as materialized (
    select prompts.*
    from prompts
    where {{ db_function('check_input') }}(
        format('prompt_id %s: ', prompt_id) || case
            when prompt_id is null then 'prompt_id is NULL'
            when namesakes > 1 then format('is there %s times', namesakes)
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
        end
    )
)

select
    sequence_id::integer as sequence_id,
    prompt_id,
    fields ->> 'prompt' as prompt,
    case
        when jsonb_typeof(fields -> 'prompt_token_ids') = 'array' then array(
            select element::integer
            from jsonb_array_elements_text(fields -> 'prompt_token_ids')
                with ordinality as token (element, i)
            order by i
        )
    end as prompt_token_ids,
    coalesce(
        (options ->> 'do_sample')::boolean,
        options ?| array['temperature', 'top_k', 'top_p', 'min_p']
    ) as do_sample,
    {%- for name, option in generation_options().items()
        if name not in ('do_sample', 'stop_strings') %}
    coalesce(
        (options ->> '{{ name }}')::{{ option.type }}, {{ option.default }}
    ) as {{ name }},
    {%- endfor %}
    case
        when jsonb_typeof(options -> 'stop_strings') = 'string'
            then array[options ->> 'stop_strings']
        else array(
            select jsonb_array_elements_text(options -> 'stop_strings')
        )
    end as stop_strings
from checked
{%- endmacro %}


{#-
    The generation options: their names, meanings and defaults are those of
    transformers' GenerationConfig (so top_k is 50 once sampling is on; 0 turns
    it off). do_sample need not be given: any of temperature, top_k, top_p and
    min_p turns it on. `valid` is a condition on the value {}.
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
        'stop_strings': {'type': 'jsonb'},
    }) }}
{%- endmacro %}


{% macro json_literal(value) -%}
    '{{ tojson(value) | replace("'", "''") }}'::jsonb
{%- endmacro %}
