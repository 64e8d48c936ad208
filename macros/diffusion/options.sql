{#-
    The options of an image, named as diffusers' pipelines and schedulers name
    them; the defaults are those of DDPMPipeline (1,000 steps) and DDIMPipeline
    (50). `valid` is a condition on the value {}.
-#}
{% macro image_options() -%}
    {{ return({
        'scheduler': {
            'type': 'text', 'valid': "{} in ('ddpm', 'ddim')", 'must_be': 'ddpm or ddim',
        },
        'num_inference_steps': {
            'type': 'integer', 'valid': '{} >= 1', 'must_be': 'a whole number, 1 or more',
        },
        'eta': {
            'type': 'float8', 'valid': '{} >= 0 and {} <= 1',
            'must_be': 'a number from 0 (DDIM) to 1',
        },
        'seed': {'type': 'bigint', 'must_be': 'a whole number'},
        'batch_size': {
            'type': 'integer', 'valid': '{} >= 1', 'must_be': 'a whole number, 1 or more',
        },
    }) }}
{%- endmacro %}


{#- The largest bigint. -#}
{% macro largest_seed() -%}
    9223372036854775807
{%- endmacro %}


{#- The cases of a CASE that say what is wrong with the named options. -#}
{% macro image_option_problems(names) -%}
    {%- for name in names %}
        {%- set option = dbt_nn.image_options()[name] %}
            when not pg_input_is_valid(options ->> '{{ name }}', '{{ option.type }}')
                then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
        {%- if option.valid %}
            when not ({{ option.valid | replace('{}', "(options ->> '" ~ name ~ "')::" ~ option.type) }})
                then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
        {%- endif %}
    {%- endfor %}
{%- endmacro %}
