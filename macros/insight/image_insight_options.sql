{#-
    What to look at in an image network: the var <network>_insight, a dict.

    options   {image_ids: […]: of which images, all by default; place: [y, x]: from which
              pixel attention is looked at, the middle by default}
    -> the same with both keys; none for what is not given

    Raises an error that names a key or a value that is not taken.
-#}
{% macro image_insight_options(options) -%}
    {%- set taken = {'image_ids': none, 'place': none} -%}
    {#- parsing knows neither the network nor all vars -#}
    {%- if not execute -%}
        {{ return(taken) }}
    {%- endif -%}
    {%- set name = 'the var ' ~ config.meta_get('network') ~ '_insight' -%}
    {%- if options is not mapping -%}
        {{ exceptions.raise_compiler_error(
            name ~ ' is ' ~ tojson(options)
            ~ ': give a dict, like {image_ids: [1], place: [16, 16]}'
        ) }}
    {%- endif -%}
    {%- for key, value in options.items() -%}
        {%- if key not in taken -%}
            {{ exceptions.raise_compiler_error(
                name ~ ': no option is named ' ~ tojson(key) ~ ': there are '
                ~ taken | join(', ')
            ) }}
        {%- endif -%}
        {%- set numbers = [value] if value is number else value -%}
        {%- set bad = [] -%}
        {%- for number in numbers or [] if number is not integer or number < 0 -%}
            {%- do bad.append(number) -%}
        {%- endfor -%}
        {%- if numbers is string or numbers is mapping or numbers is not iterable or bad
            or not numbers or (key == 'place' and numbers | length != 2) -%}
            {{ exceptions.raise_compiler_error(
                name ~ ': ' ~ key ~ ' is ' ~ tojson(value) ~ ': give ' ~ (
                    'a pixel, [y, x] from 0' if key == 'place'
                    else 'a list of image ids, at least one'
                )
            ) }}
        {%- endif -%}
        {%- do taken.update({key: numbers}) -%}
    {%- endfor -%}
    {{ return(taken) }}
{%- endmacro %}


{#- A condition on an image's id: that it is one of those to look at. -#}
{% macro is_looked_at(image_id, options) -%}
    {%- set chosen = dbt_nn.image_insight_options(options).image_ids -%}
    {{- image_id ~ ' in (' ~ chosen | join(', ') ~ ')' if chosen else 'true' -}}
{%- endmacro %}
