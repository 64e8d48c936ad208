{#-
    The options of all rows of a run: a SELECT of one row (options), without nulls.

    options   a dict, or the name of a relation of one row, whose columns are
              options: dbt does not parse the project anew where they change
    known     the names of all options
    kind      of the options, for a message

    A name that is not known raises an error.
-#}
{% macro run_options(options, known, kind) -%}
    {%- if options is not string and options is not mapping -%}
        {{ exceptions.raise_compiler_error(
            'the ' ~ kind ~ ' options ' ~ tojson(options)
            ~ ' are neither a dict, like {seed: 7}, nor the name of a relation'
        ) }}
    {%- endif -%}
    {%- set known = known | list -%}
    {%- if options is mapping -%}
        {%- set given = {} -%}
        {%- for name, value in options.items() -%}
            {%- set is_ordered = value is mapping and name in dbt_nn.ordered_options() -%}
            {%- do given.update({name: tojson(value) if is_ordered else value}) -%}
        {%- endfor -%}
        {%- set options = given -%}
    {%- endif -%}
select {{ dbt_nn.given_fields('given.named', known) | indent(4) }} as options
from (
    {%- if options is string %}
    {#- an alias that is the name of no column #}
    select
        coalesce(jsonb_agg({{ dbt_nn.given_row('dbt_nn_row') | indent(8) }}) -> 0, '{}') as named,
        count(*) as n
    from {{ dbt_nn.whole_relation(dbt_nn.user_relation(options)) }} as dbt_nn_row
    {%- else %}
    select
        {{ dbt_nn.literal(tojson(options)) }}::jsonb as named,
        1 as n
    {%- endif %}
) as given
where {{ dbt_nn.db_function('check_input') }}(
    case
        when given.n <> 1
            then format(
                'the relation of {{ kind }} options has %s rows and needs one', given.n
            )
        else 'the {{ kind }} options: '
            || {{ dbt_nn.unknown_option('given.named', known) | indent(12) }}
    end
)
{%- endmacro %}
