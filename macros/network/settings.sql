{#-
    The vars that are numbers and sizes, checked: what does not make sense stops the
    run before its first model. A model of another project, which calls a kernel or is a
    network's, does not see the vars of dbt_project.yml here: the defaults are the same.
-#}

{#- A var that is a size of memory, like '2GB', in bytes; none for none. Units as in
    PostgreSQL's settings. -#}
{% macro memory_setting(name) -%}
    {%- set size = var(name, {'resident_memory': '2GB'}.get(name)) -%}
    {%- set units = {
        '': 0, 'bytes': 0, 'b': 0, 'kb': 1, 'mb': 2, 'gb': 3, 'tb': 4,
    } -%}
    {%- if size is none -%}
        {{ return(none) }}
    {%- else -%}
        {%- set found = modules.re.fullmatch(
            '\\s*(\\d{1,15}(?:\\.\\d+)?)\\s*(' ~ units | join('|') ~ ')\\s*',
            size | string, modules.re.IGNORECASE
        ) -%}
        {%- if not found -%}
            {{ exceptions.raise_compiler_error(
                'the var ' ~ name ~ ' is ' ~ tojson(size)
                ~ ": give a size of memory, like '2GB', or null"
            ) }}
        {%- endif -%}
        {{ return(
            (found.group(1) | float * 1024 ** units[found.group(2) | lower]) | int
        ) }}
    {%- endif -%}
{%- endmacro %}


{#- The var work_per_process, a number above 0. -#}
{% macro work_per_process() -%}
    {%- set work = var('work_per_process', 100000000) -%}
    {%- if work is not number or work is boolean or work <= 0 -%}
        {{ exceptions.raise_compiler_error(
            'the var work_per_process is ' ~ tojson(work)
            ~ ': give the multiply-adds that are worth another process, a number above 0'
        ) }}
    {%- endif -%}
    {{ return(work) }}
{%- endmacro %}


{#- The var batch_prompts, a whole number above 0; none for no limit. -#}
{% macro batch_prompts() -%}
    {%- set prompts = var('batch_prompts', 64) -%}
    {%- if prompts is not none
        and (prompts is not integer or prompts is boolean or prompts <= 0) -%}
        {{ exceptions.raise_compiler_error(
            'the var batch_prompts is ' ~ tojson(prompts)
            ~ ': give how many prompts may share a batch, a whole number above 0, or null'
        ) }}
    {%- endif -%}
    {{ return(prompts) }}
{%- endmacro %}


{#- The var batch_tokens, a whole number above 0. -#}
{% macro batch_tokens() -%}
    {%- set tokens = var('batch_tokens', 4096) -%}
    {%- if tokens is not integer or tokens is boolean or tokens <= 0 -%}
        {{ exceptions.raise_compiler_error(
            'the var batch_tokens is ' ~ tojson(tokens)
            ~ ': give how many tokens of texts may share a batch, a whole number above 0'
        ) }}
    {%- endif -%}
    {{ return(tokens) }}
{%- endmacro %}


{#- Looks at all of them. -#}
{% macro check_settings() -%}
    {%- do dbt_nn.memory_setting('batch_memory') -%}
    {%- do dbt_nn.memory_setting('resident_memory') -%}
    {%- do dbt_nn.work_per_process() -%}
    {%- do dbt_nn.batch_prompts() -%}
    {%- do dbt_nn.batch_tokens() -%}
    {%- do dbt_nn.kernel_form() -%}
{%- endmacro %}
