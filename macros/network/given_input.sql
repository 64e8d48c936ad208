{#-
    What a user hands over: options by name, and a relation that has a column for any
    of them beside columns of his own.
-#}

{#- The columns of a user's relation: a SELECT of (name, type, category), domains as
    their base type, category as in pg_type. `rows` is a relation of its rows with
    row_type, pg_typeof() of the whole row. None are known of no rows and of a row that
    is of no relation but of a query. -#}
{% macro given_columns(rows) -%}
select
    attribute.attname::text as name,
    {{ dbt_nn.db_function('base_type') }}(attribute.atttypid) as type,
    type.typcategory as category
from pg_type as row_type
inner join pg_attribute as attribute on attribute.attrelid = row_type.typrelid
inner join pg_type as type on type.oid = attribute.atttypid
where row_type.oid = (select row_type from {{ rows }} limit 1)
    and attribute.attnum > 0
    and not attribute.attisdropped
{%- endmacro %}


{#- A row as jsonb, an expression. An object whose keys have an order that counts is
    given as a text, which keeps it, as json does and jsonb does not. -#}
{% macro given_row(row) -%}
to_jsonb({{ row }}) || (
    select coalesce(jsonb_object_agg(field.key, field.value::text), '{}')
    from json_each(to_json({{ row }})) as field
    where json_typeof(field.value) = 'object'
        and field.key in ({{ dbt_nn.literals(dbt_nn.ordered_options()) }})
)
{%- endmacro %}


{#- The options that are objects whose keys have an order that counts: a list. -#}
{% macro ordered_options() -%}
    {{ return(['json_schema']) }}
{%- endmacro %}


{#-
    Those of a row's fields that are not NULL and have one of the `names`: an
    expression, jsonb. A char(n) is without the blanks that complete it, as PostgreSQL
    casts it to text, and a number without zeros at its end, so that 5.00 is a whole
    one.

    fields    jsonb object, an expression
    names     list
    columns   relation made by given_columns(), if they are of one
-#}
{% macro given_fields(fields, names, columns=none) -%}
(
    select coalesce(
        jsonb_object_agg(
            field.key,
            case
                when jsonb_typeof(field.value) = 'number'
                    then to_jsonb(trim_scale(field.value::numeric))
                {%- if columns %}
                when field.key in (
                    select name from {{ columns }} where type = 'bpchar'::regtype
                )
                    then to_jsonb(rtrim(field.value #>> '{}', ' '))
                {%- endif %}
                else field.value
            end
        ),
        '{}'
    )
    from jsonb_each(jsonb_strip_nulls({{ fields }})) as field
    where field.key in ({{ dbt_nn.literals(names) }})
)
{%- endmacro %}


{#- What is wrong with the names in `options`, jsonb: an expression, NULL if each is
    one of `names`. -#}
{% macro unknown_option(options, names) -%}
(
    select format(
        'no option is named %s: %s are {{ names | join(", ") }}',
        to_json(option.name),
        coalesce(
            'did you mean '
            || {{ dbt_nn.db_function('meant_name') }}(option.name, array[{{ dbt_nn.literals(names) }}])
            || '? There',
            'there'
        )
    )
    from jsonb_object_keys({{ options }}) as option (name)
    where option.name not in ({{ dbt_nn.literals(names) }})
    limit 1
)
{%- endmacro %}


{#- A column of the user's whose name is nearly one of the `names`, which would go
    unnoticed: an expression, a text or NULL. -#}
{% macro misspelt_column(columns, names) -%}
(
    select format(
        'has a column %s: did you mean %s? Give it another name if it is your own',
        given.name, given.meant
    )
    from (
        select
            columns.name,
            {{ dbt_nn.db_function('meant_name') }}(
                columns.name, array[{{ dbt_nn.literals(names) }}]
            ) as meant
        from {{ columns }} as columns
    ) as given
    where given.meant is not null
    order by given.name
    limit 1
)
{%- endmacro %}


{#- Texts as literals, with commas. -#}
{% macro literals(texts) -%}
    {%- for text in texts -%}
        {{ dbt_nn.literal(text) }}{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}
