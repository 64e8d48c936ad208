{#-
    The generation options: their names, meanings and defaults are those of
    transformers' GenerationConfig (so top_k is 50 once sampling is on; 0 turns
    it off). do_sample need not be given: any of temperature, top_k, top_p and
    min_p turns it on. prompt_logprobs is vLLM's: score the prompt's own tokens;
    it is on where max_new_tokens is 0. pooling_mode is sentence-transformers': give
    a vector of the prompt. choices are continuations of the prompt of which the
    network is to find the likeliest: it generates none. regex and json_schema are what
    vLLM calls structured outputs: the completion is of that form. `valid` is a condition
    on the value {}.
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
        'choices': {'type': 'jsonb'},
        'regex': {'type': 'text', 'default': 'null'},
        'json_schema': {
            'type': 'json', 'default': 'null', 'valid': "json_typeof({}) = 'object'",
            'must_be': 'a JSON schema, an object',
        },
        'pooling_mode': {
            'type': 'text', 'default': 'null',
            'valid': "{} in ('" ~ dbt_nn.text_pooling_modes() | join("', '") ~ "')",
            'must_be': dbt_nn.text_pooling_modes() | join(' or '),
        },
    }) }}
{%- endmacro %}


{#- Branches of a CASE: what is wrong with the jsonb `options`. -#}
{% macro generation_option_problems() -%}
{%- for name, option in dbt_nn.generation_options().items() if option.type != 'jsonb' %}
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
    when jsonb_typeof(options -> 'choices') <> 'array'
        or options -> 'choices' = '[]'
        or jsonb_path_exists(
            options -> 'choices',
            'strict $[*] ? (@.type() != "string" || @ == "")',
            silent => true
        )
        then format(
            'choices must be an array of texts (text[] or jsonb), at least one and '
            'none empty, not %s',
            options -> 'choices'
        )
    when exists (
        select from jsonb_array_elements(options -> 'choices') as choice (text)
        group by choice.text
        having count(*) > 1
    )
        then format(
            'choices must differ, and %s has one twice', options -> 'choices'
        )
    when options ? 'regex' and options ? 'json_schema'
        then 'give a regex or a json_schema, not both'
    when options ?| array['regex', 'json_schema'] and options ? 'choices'
        then 'choices are scored and not written: give no regex or json_schema with them'
    when options ?| array['regex', 'json_schema']
        and options -> 'stop_strings' not in ('[]', 'null')
        then 'stop_strings could cut an answer of a form: give no regex or json_schema '
            'with them'
{%- endmacro %}
