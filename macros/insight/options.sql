{#-
    The options of what looks inside a network, a dictionary with all of them: those
    given by the network's var <network>_insight, and the defaults.

    given   a dict, like {prompt_ids: [1], layers: [0, 11], top_k: 10}

        prompt_ids   the prompts to look at; none: all that the layers hold
        layers       the blocks to look at, from 0; none: all
        heads        the attention heads to look at, from 0; none: all
        top_k        how many of the likeliest tokens to keep of each distribution
        places       sequences are taken, in their order, as long as their tokens add
                     up to at most so many

    A name that is not known and a value that makes no sense raise an error when the model
    is built. Whether the network has such a prompt, layer or head is for
    insight_problem().
-#}
{% macro insight_options(given) -%}
    {%- set options = {
        'prompt_ids': none, 'layers': none, 'heads': none, 'top_k': 5, 'places': 1024,
    } -%}
    {%- if not execute -%}
        {{ return(options) }}
    {%- endif -%}
    {%- set name = 'the var ' ~ config.meta_get('network') ~ '_insight' -%}
    {%- if given is not mapping -%}
        {{ exceptions.raise_compiler_error(
            name ~ ' is ' ~ tojson(given) ~ ': give a dict, like {layers: [0, 1]}'
        ) }}
    {%- endif -%}
    {%- for key, value in given.items() -%}
        {%- if key not in options -%}
            {{ exceptions.raise_compiler_error(
                name ~ ': no option is named ' ~ tojson(key) ~ ': there are '
                ~ options | join(', ')
            ) }}
        {%- endif -%}
        {%- set wish = dbt_nn._insight_wish(key, value) -%}
        {%- if wish -%}
            {{ exceptions.raise_compiler_error(
                name ~ ': ' ~ key ~ ' is ' ~ tojson(value) ~ ': give ' ~ wish
            ) }}
        {%- endif -%}
        {%- do options.update({key: value}) -%}
    {%- endfor -%}
    {{ return(options) }}
{%- endmacro %}


{#- What an option has to be; none where the value is that. -#}
{% macro _insight_wish(key, value) -%}
    {%- if value is none and key not in ('top_k', 'places') -%}
        {{ return(none) }}
    {%- elif key in ('top_k', 'places') -%}
        {%- set is_right = value is integer and value is not boolean and value > 0 -%}
        {{ return(none if is_right else 'a whole number above 0') }}
    {%- elif value is string or value is mapping or value is not sequence or not value -%}
        {{ return('a list of at least one' if key == 'prompt_ids'
            else 'a list of whole numbers from 0, at least one') }}
    {%- elif key == 'prompt_ids' -%}
        {{ return('numbers or texts'
            if value | select('none') | list or value | select('mapping') | list
            else none) }}
    {%- endif -%}
    {%- for number in value
        if number is not integer or number is boolean or number < 0 -%}
        {{ return('a list of whole numbers from 0, at least one') }}
    {%- endfor -%}
    {{ return(none) }}
{%- endmacro %}


{#- The heads to look at: a FROM item (number), from the expression for how many. -#}
{% macro looked_at_heads(count, options) -%}
    {%- if options.heads is none -%}
    generate_series(0, {{ count }} - 1) as head (number)
    {%- else -%}
    (
        select distinct number
        from unnest(array[{{ options.heads | join(', ') }}]) as chosen (number)
        where number < {{ count }}
    ) as head
    {%- endif -%}
{%- endmacro %}


{#- The layers to look at, a list of numbers from 0, of so many. -#}
{% macro looked_at_layers(count, options) -%}
    {{ return(range(count) | select('in', options.layers or range(count)) | list) }}
{%- endmacro %}
