{#-
    The database functions that write a JSON schema as a regular expression: all texts
    that it matches are JSON that fulfils the schema and that PostgreSQL reads.

    Properties come in the schema's order, since jsonb does not keep one: by json. A blank
    may stand where JSON allows one. Strings have no \u escapes: every character but
    control characters may be written as it is.

    What a schema may say is draft 2020-12's, for objects of plain fields: type, enum,
    const, properties, required, items, minItems, maxItems, anyOf, oneOf, $ref to $defs,
    of texts minLength, maxLength, pattern and format, of integers minimum, maximum,
    exclusiveMinimum and exclusiveMaximum. Annotations are skipped. Anything else is
    refused by its name.
-#}
{% macro create_schema_functions() -%}
    {# A text as a regular expression that matches it alone. #}
    create or replace function {{ dbt_nn.db_function('regex_quote') }} (input text)
    returns text language sql immutable strict parallel safe as $body$
        select regexp_replace(input, '([][\\.^$|?*+(){}])', '\\\1', 'g')
    $body$;

    {# Whole numbers of as many digits, from low to high, 0 at the front allowed. #}
    create or replace function {{ dbt_nn.db_function('digits_regex') }} (low text, high text)
    returns text language plpgsql immutable strict parallel safe as $body$
    declare
        a constant text := left(low, 1);
        b constant text := left(high, 1);
        n constant integer := char_length(low) - 1;
        parts text[] := '{}';
        rest_low constant text := substr(low, 2);
        rest_high constant text := substr(high, 2);
        first integer;
        last integer;
    begin
        if low = repeat('0', n + 1) and high = repeat('9', n + 1) then
            return case n + 1 when 0 then '' when 1 then '[0-9]' else '[0-9]{' || n + 1 || '}' end;
        end if;
        if a = b then
            return a || {{ dbt_nn.db_function('digits_regex') }}(rest_low, rest_high);
        end if;
        first := a::integer;
        last := b::integer;
        if rest_low <> repeat('0', n) then
            parts := parts
            || (a || {{ dbt_nn.db_function('digits_regex') }}(rest_low, repeat('9', n)));
            first := first + 1;
        end if;
        if rest_high <> repeat('9', n) then
            last := last - 1;
        end if;
        if first <= last then
            parts := parts || (
                case when first = last then first::text else format('[%s-%s]', first, last) end
                || {{ dbt_nn.db_function('digits_regex') }}(repeat('0', n), repeat('9', n))
            );
        end if;
        if last < b::integer then
            parts := parts
            || (b || {{ dbt_nn.db_function('digits_regex') }}(repeat('0', n), rest_high));
        end if;
        return case cardinality(parts)
            when 1 then parts[1]
            else '(?:' || array_to_string(parts, '|') || ')'
        end;
    end
    $body$;

    {# The integers from low to high, in JSON's notation. #}
    create or replace function {{ dbt_nn.db_function('integer_regex') }} (low numeric, high numeric)
    returns text language sql immutable strict parallel safe as $body$
        select '(?:' || string_agg(
            part.sign || {{ dbt_nn.db_function('digits_regex') }}(part.low::text, part.high::text),
            '|' order by part.sign desc, part.digits
        ) || ')'
        from (
            select
                side.sign,
                digits,
                greatest(side.low, case digits when 1 then 0 else 10::numeric ^ (digits - 1) end)::numeric(40, 0)
                as low,
                least(side.high, 10::numeric ^ digits - 1)::numeric(40, 0) as high
            from (
                values ('', greatest(low, 0), high), ('-', greatest(-high, 1), -low)
            ) as side (sign, low, high)
            cross join generate_series(1, char_length(side.high::numeric(40, 0)::text)) as digits
            where side.low <= side.high
        ) as part
        where part.low <= part.high
    $body$;

    {# A JSON schema as a regular expression. #}
    create or replace function {{ dbt_nn.db_function('json_schema_regex') }} (schema json)
    returns text language plpgsql immutable strict parallel safe as $body$
    begin
        if json_typeof(schema) <> 'object' then
            raise invalid_parameter_value using message = 'it is no object';
        end if;
        return {{ dbt_nn.db_function('json_value_regex') }}(schema, schema, '', 0);
    end
    $body$;
{%- endmacro %}


{#- The function for the schema of a value, which calls itself for those within. Apart,
    since it has to be there before. -#}
{% macro create_json_value_function() -%}
    create or replace function {{ dbt_nn.db_function('json_value_regex') }} (
        schema json, root json, place text, depth integer
    ) returns text language plpgsql immutable parallel safe as $body$
    declare
        about constant text := case when place = '' then '' else format('of %s: ', place) end;
        character constant text := '(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])';
        comma constant text := '[ ]?,[ ]?';
        annotations constant text[] := array[
            'title', 'description', 'default', 'examples', '$schema', '$id', '$comment', '$defs',
            'definitions', 'deprecated', 'readOnly', 'writeOnly', 'additionalProperties'
        ];
        known text[];
        key text;
        keys constant text[] := array(
            select json_object_keys from json_object_keys(
                case json_typeof(schema) when 'object' then schema else '{}' end
            )
        );
        kinds text[];
        kind text;
        low numeric;
        high numeric;
        part text;
        parts text[] := '{}';
        required text[];
        first_required integer;
        names text[];
    begin
        if json_typeof(schema) is distinct from 'object' then
            raise invalid_parameter_value using message = about || format(
                'a schema is an object, not %s', coalesce(schema::text, 'nothing')
            );
        end if;
        if depth > 16 then
            raise invalid_parameter_value using message =
                about || 'it refers to itself, or is nested more than 16 deep';
        end if;

        {# what stands for a schema elsewhere, or for several #}
        if schema -> '$ref' is not null then
            known := array['$ref'];
            part := schema ->> '$ref';
            if part !~ '^#/(\$defs|definitions)/[^/]+$'
                or root #> string_to_array(substr(part, 3), '/') is null then
                raise invalid_parameter_value using message = about || format(
                    '$ref is %s, which is not in $defs of the schema', schema -> '$ref'
                );
            end if;
            part := {{ dbt_nn.db_function('json_value_regex') }}(
                root #> string_to_array(substr(part, 3), '/'), root, place, depth + 1
            );
        elsif schema -> 'const' is not null then
            known := array['const', 'type'];
            part := {{ dbt_nn.db_function('regex_quote') }}((schema -> 'const')::jsonb::text);
        elsif schema -> 'enum' is not null then
            known := array['enum', 'type'];
            if json_typeof(schema -> 'enum') <> 'array' or (schema -> 'enum')::jsonb = '[]' then
                raise invalid_parameter_value using message = about || format(
                    'enum must be an array of values, not %s', schema -> 'enum'
                );
            end if;
            part := '(?:' || (
                select string_agg(
                    {{ dbt_nn.db_function('regex_quote') }}(value::jsonb::text), '|' order by i
                )
                from json_array_elements(schema -> 'enum') with ordinality as element (value, i)
            ) || ')';
        elsif schema -> 'anyOf' is not null or schema -> 'oneOf' is not null then
            key := case when schema -> 'anyOf' is null then 'oneOf' else 'anyOf' end;
            known := array[key];
            if json_typeof(schema -> key) <> 'array' or (schema -> key)::jsonb = '[]' then
                raise invalid_parameter_value using message = about || format(
                    '%s must be an array of schemas, not %s', key, schema -> key
                );
            end if;
            part := '(?:' || (
                select string_agg(
                    {{ dbt_nn.db_function('json_value_regex') }}(value, root, place, depth + 1),
                    '|' order by i
                )
                from json_array_elements(schema -> key) with ordinality as element (value, i)
            ) || ')';
        else
            known := array['type'];
            kinds := case
                when json_typeof(schema -> 'type') = 'array'
                    then array(select json_array_elements_text(schema -> 'type'))
                when schema ->> 'type' is not null then array[schema ->> 'type']
                when schema -> 'properties' is not null then array['object']
            end;
            if kinds is null or kinds = '{}' then
                raise invalid_parameter_value using message = about || 'it has no type';
            end if;
            foreach kind in array kinds loop
                if kind = 'string' then
                    known := known || array['minLength', 'maxLength', 'pattern', 'format'];
                    if schema -> 'format' is not null then
                        part := case schema ->> 'format'
                            {{ dbt_nn.json_formats() | indent(28) }}
                        end;
                        if part is null then
                            raise invalid_parameter_value using message = about || format(
                                'format is %s; date, time, date-time, email and uuid are supported',
                                schema -> 'format'
                            );
                        end if;
                    elsif schema -> 'pattern' is not null then
                        part := schema ->> 'pattern';
                        part := case when part ~ '^\^' then '' else '(?:' || character || ')*' end
                        || '(?j:' || regexp_replace(regexp_replace(part, '^\^', ''), '(?<!\\)\$$', '')
                        || ')' || case when part ~ '(?<!\\)\$$' then '' else '(?:' || character || ')*' end;
                    else
                        part := character || '*';
                    end if;
                    if schema -> 'minLength' is not null or schema -> 'maxLength' is not null then
                        if schema -> 'format' is not null or schema -> 'pattern' is not null then
                            raise invalid_parameter_value using message = about
                                || 'minLength and maxLength beside a format or a pattern are not supported';
                        end if;
                        part := character || {{ dbt_nn.db_function('json_counts') }}(
                            schema, 'minLength', 'maxLength', about
                        );
                    end if;
                    parts := parts || ('"' || part || '"');
                elsif kind = 'integer' then
                    known := known || array['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'];
                    low := 1 - 10::numeric ^ 18;
                    high := 10::numeric ^ 18 - 1;
                    foreach key in array array['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'] loop
                        if schema -> key is not null and json_typeof(schema -> key) <> 'number' then
                            raise invalid_parameter_value using message = about || format(
                                '%s must be a number, not %s', key, schema -> key
                            );
                        end if;
                    end loop;
                    low := greatest(
                        low,
                        ceil((schema ->> 'minimum')::numeric),
                        floor((schema ->> 'exclusiveMinimum')::numeric) + 1
                    );
                    high := least(
                        high,
                        floor((schema ->> 'maximum')::numeric),
                        ceil((schema ->> 'exclusiveMaximum')::numeric) - 1
                    );
                    if low > high then
                        raise invalid_parameter_value using message =
                            about || 'no integer is as large as it says';
                    end if;
                    parts := parts || {{ dbt_nn.db_function('integer_regex') }}(low, high);
                elsif kind = 'number' then
                    parts := parts || '-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2})?'::text;
                elsif kind = 'boolean' then
                    parts := parts || '(?:true|false)'::text;
                elsif kind = 'null' then
                    parts := parts || 'null'::text;
                elsif kind = 'array' then
                    known := known || array['items', 'minItems', 'maxItems'];
                    if schema -> 'items' is null then
                        raise invalid_parameter_value using message =
                            about || 'an array needs items, the schema of its elements';
                    end if;
                    part := {{ dbt_nn.db_function('json_value_regex') }}(
                        schema -> 'items', root, ltrim(place || '.items', '.'), depth + 1
                    );
                    part := {{ dbt_nn.db_function('json_list_regex') }}(
                        part,
                        {{ dbt_nn.db_function('json_bound') }}(schema, 'minItems', about),
                        {{ dbt_nn.db_function('json_bound') }}(schema, 'maxItems', about),
                        comma
                    );
                    parts := parts || ('\[[ ]?' || part || '\]');
                elsif kind = 'object' then
                    known := known || array['properties', 'required'];
                    if json_typeof(schema -> 'properties') is distinct from 'object'
                        or (schema -> 'properties')::jsonb = '{}' then
                        raise invalid_parameter_value using message =
                            about || 'an object needs properties, a schema of each field';
                    end if;
                    names := array(select json_object_keys from json_object_keys(schema -> 'properties'));
                    if (select count(distinct name) from unnest(names) as name) < cardinality(names) then
                        raise invalid_parameter_value using message =
                            about || 'properties has a field twice';
                    end if;
                    if schema -> 'required' is not null and json_typeof(schema -> 'required') <> 'array' then
                        raise invalid_parameter_value using message = about || format(
                            'required must be an array of fields, not %s', schema -> 'required'
                        );
                    end if;
                    required := array(
                        select json_array_elements_text(coalesce(schema -> 'required', '[]'))
                    );
                    if not required <@ names then
                        raise invalid_parameter_value using message = about || format(
                            'required has %s, which is not in properties',
                            (select to_json(name) from unnest(required) as name where name <> all(names) limit 1)
                        );
                    end if;
                    parts := parts || ('\{[ ]?' || {{ dbt_nn.db_function('json_fields_regex') }}(
                        array(
                            select
                                {{ dbt_nn.db_function('regex_quote') }}(to_json(field.key)::text) || '[ ]?:[ ]?'
                                || {{ dbt_nn.db_function('json_value_regex') }}(
                                    field.value, root, ltrim(place || '.' || field.key, '.'), depth + 1
                                )
                            from json_each(schema -> 'properties') with ordinality as field (key, value, i)
                            order by field.i
                        ),
                        array(select name = any(required) from unnest(names) with ordinality as field (name, i) order by i),
                        comma
                    ) || '\}');
                else
                    raise invalid_parameter_value using message = about || format(
                        'type is %s; string, integer, number, boolean, null, array and object '
                        'are supported', to_json(kind)
                    );
                end if;
            end loop;
            part := case cardinality(parts)
                when 1 then parts[1]
                else '(?:' || array_to_string(parts, '|') || ')'
            end;
        end if;

        select name into key
        from unnest(keys) as name
        where name <> all(known || annotations)
        limit 1;
        if found then
            raise invalid_parameter_value using message = about || format(
                '%s is not supported%s', key,
                case when kinds is null then ' beside ' || known[1] else ' of type ' || array_to_string(kinds, ', ') end
            );
        end if;
        return part;
    end
    $body$;
{%- endmacro %}


{#- The functions for lists of values and of fields. -#}
{% macro create_json_list_functions() -%}
    {# A whole number from 0 that a schema has under a name, NULL where it has none. #}
    create or replace function {{ dbt_nn.db_function('json_bound') }} (schema json, name text, about text)
    returns integer language plpgsql immutable parallel safe as $body$
    begin
        if schema -> name is not null and (
            json_typeof(schema -> name) <> 'number' or schema ->> name !~ '^[0-9]{1,5}$'
        ) then
            raise invalid_parameter_value using message = about || format(
                '%s must be a whole number from 0 to 99999, not %s', name, schema -> name
            );
        end if;
        return schema ->> name;
    end
    $body$;

    {# Two such bounds as a quantifier. #}
    create or replace function {{ dbt_nn.db_function('json_counts') }} (
        schema json, least_name text, most_name text, about text
    ) returns text language plpgsql immutable parallel safe as $body$
    declare
        low constant integer := coalesce(
            {{ dbt_nn.db_function('json_bound') }}(schema, least_name, about), 0
        );
        high constant integer := {{ dbt_nn.db_function('json_bound') }}(schema, most_name, about);
    begin
        if low > high then
            raise invalid_parameter_value using message = about || format(
                '%s is above %s', least_name, most_name
            );
        end if;
        return '{' || low || ',' || coalesce(high::text, '') || '}';
    end
    $body$;

    {# The elements of an array, with a blank behind them. #}
    create or replace function {{ dbt_nn.db_function('json_list_regex') }} (
        element text, low integer, high integer, comma text
    ) returns text language plpgsql immutable parallel safe as $body$
    begin
        if low > high then
            raise invalid_parameter_value using message = 'minItems is above maxItems';
        end if;
        return case
            when high = 0 then ''
            else '(?:' || element || '(?:' || comma || element || '){'
                || greatest(coalesce(low, 0) - 1, 0) || ',' || coalesce((high - 1)::text, '')
                || '}[ ]?)' || case when coalesce(low, 0) = 0 then '?' else '' end
        end;
    end
    $body$;

    {#
        The fields of an object in their order, with a blank behind them; of those that
        are not required any may be missing, and the commas with them.
    #}
    create or replace function {{ dbt_nn.db_function('json_fields_regex') }} (
        fields text[], is_required boolean[], comma text
    ) returns text language sql immutable strict parallel safe as $body$
        select case
            when true = any(is_required) then (
                select string_agg(
                    case
                        when is_required[i] and i = first then fields[i]
                        when is_required[i] then comma || fields[i]
                        when i < first then format('(?:%s%s)?', fields[i], comma)
                        else format('(?:%s%s)?', comma, fields[i])
                    end,
                    '' order by i
                ) || '[ ]?'
                from array_position(is_required, true) as first
                cross join generate_subscripts(fields, 1) as i
            )
            else '(?:(?:' || (
                select string_agg(
                    fields[first] || (
                        select coalesce(string_agg(format('(?:%s%s)?', comma, fields[i]), '' order by i), '')
                        from generate_series(first + 1, cardinality(fields)) as i
                    ),
                    '|' order by first
                )
                from generate_subscripts(fields, 1) as first
            ) || ')[ ]?)?'
        end
    $body$;
{%- endmacro %}


{#- Branches of a CASE: the formats of texts. Each of these dates is one: in February
    the 29th only where the year has one. -#}
{% macro json_formats() -%}
{%- set date = '(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])'
    ~ '|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))'
    ~ '|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)' -%}
{%- set time = '(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?' -%}
{%- set zone = '(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])' -%}
when 'date' then '{{ date }}'
when 'time' then '{{ time }}(?:{{ zone }})?'
when 'date-time' then '{{ date }}T{{ time }}{{ zone }}'
when 'uuid' then '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
when 'email' then '[A-Za-z0-9_%+-]+(?:\.[A-Za-z0-9_%+-]+)*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}'
{%- endmacro %}
