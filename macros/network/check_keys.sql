{#-
    A statement that stops the run where a user's relation lacks a column, or where its
    keys cannot be compared with those of earlier runs.

    table       the model's own table, where earlier runs left one
    relation    of the user
    key         name of its column of keys
    known_key   the same column in the table
    texts       names of its columns that hold texts
-#}
{% macro check_keys(table, relation, key='prompt_id', known_key='prompt_id', texts=[]) -%}
    {%- if execute %}
    {%- set given = dbt_nn.literal(dbt_nn.whole_relation(relation)) %}
    select {{ dbt_nn.db_function('check_input') }}(
        case
            when problem.text is not null
                then format('the relation %s: %s', {{ given }}, problem.text)
            {%- if not should_full_refresh() %}
            when given.category <> known.category
                then format(
                    '%s of %s is of type %s, and of earlier runs in %s %s: choose '
                    'another schema (DBT_NN_SCHEMA), or begin anew with --full-refresh',
                    {{ dbt_nn.literal(key) }}, {{ given }}, given.type, {{ dbt_nn.literal(table) }}, known.type
                )
            {%- endif %}
        end
    )
    from (select) as one
    left join (
        {%- if texts %}
        select
            case
                when attribute.attname is null
                    then format(
                        'has no column %s: it has %s. Name yours in the var '
                        '{{ config.meta_get("network") }}_%s',
                        wanted.name,
                        (
                            select string_agg(attname, ', ' order by attnum)
                            from pg_attribute
                            where attrelid = to_regclass({{ given }})
                                and attnum > 0
                                and not attisdropped
                        ),
                        wanted.what
                    )
                else format(
                    'its column %s is of type %s: give a text (text, varchar, char, '
                    'citext, name or a domain over one)',
                    wanted.name, attribute.atttypid::regtype
                )
            end as text
        from (
            values ({{ dbt_nn.literal(key) }}, 'key', 1)
            {%- for name in texts if name -%}
            , ({{ dbt_nn.literal(name) }}, '{{ "text" if loop.first else "text_pair" }}', {{ loop.index + 1 }})
            {%- endfor %}
        ) as wanted (name, what, number)
        left join pg_attribute as attribute
            on attribute.attrelid = to_regclass({{ given }})
            and attribute.attname = wanted.name
            and attribute.attnum > 0
            and not attribute.attisdropped
        left join pg_type as type
            on type.oid = {{ dbt_nn.db_function('base_type') }}(attribute.atttypid)
        where to_regclass({{ given }}) is not null
            and (
                attribute.attname is null
                or wanted.what <> 'key' and type.typcategory <> 'S'
            )
        order by wanted.number
        limit 1
        {%- else %}
        select null::text as text
        {%- endif %}
    ) as problem on true
    left join {{ dbt_nn.key_type(relation, key) }} as given on true
    left join {{ dbt_nn.key_type(table, known_key) }} as known on true
    {%- endif %}
{%- endmacro %}


{#- The type of a relation's column: a FROM item (type, category), empty without it. -#}
{% macro key_type(relation, key) -%}
(
    select
        attribute.atttypid::regtype as type,
        type.typcategory as category
    from pg_attribute as attribute
    inner join pg_type as type on attribute.atttypid = type.oid
    where attribute.attrelid = to_regclass({{ dbt_nn.literal(dbt_nn.whole_relation(relation)) }})
        and attribute.attname = {{ dbt_nn.literal(key) }}
)
{%- endmacro %}
