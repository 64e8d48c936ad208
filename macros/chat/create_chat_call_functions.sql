{#- What a chat template can call: tests, filters, methods and functions, as Jinja and
    Python have them. See create_chat_functions(). -#}
{% macro create_chat_call_functions() -%}
{%- set blanks = dbt_nn.python_blanks() -%}
{# x is test, or x is test(y). #}
create or replace function {{ dbt_nn.db_function('chat_test') }} (
    test text, x jsonb, y jsonb
)
returns boolean language plpgsql immutable parallel safe
as $body$
declare
    kind text := coalesce(jsonb_typeof(x), 'undefined');
begin
    case test
    when 'defined' then
        return kind <> 'undefined';
    when 'undefined' then
        return kind = 'undefined';
    when 'none' then
        return kind = 'null';
    when 'string' then
        return kind = 'string';
    when 'boolean' then
        return kind = 'boolean';
    when 'true' then
        return coalesce(x = 'true', false);
    when 'false' then
        return coalesce(x = 'false', false);
    when 'number' then
        return kind in ('number', 'boolean');
    when 'integer' then
        return kind = 'number' and scale(x::numeric) = 0;
    when 'float' then
        return kind = 'number' and scale(x::numeric) > 0;
    when 'mapping' then
        return kind = 'object' and not x ? '$namespace' and not x ? '$function';
    when 'sequence', 'iterable' then
        return kind in ('string', 'array', 'object')
            or kind = 'undefined';
    when 'callable' then
        return kind = 'object' and x ? '$function';
    when 'even', 'divisibleby', 'odd' then
        if kind <> 'number' then
            raise exception 'it tests whether % is %', coalesce(left(x::text, 100), 'what is undefined'), test;
        end if;
        return case test
            when 'even' then x::numeric % 2 = 0
            when 'odd' then x::numeric % 2 <> 0
            else x::numeric % y::numeric = 0
        end;
    when 'eq', 'equalto', '==', 'sameas' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'eq', y);
    when 'ne', '!=' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'ne', y);
    when 'in' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'in', y);
    when 'lt', 'lessthan', '<' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'lt', y);
    when 'le', '<=' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'lteq', y);
    when 'gt', 'greaterthan', '>' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'gt', y);
    when 'ge', '>=' then
        return {{ dbt_nn.db_function('chat_compares') }}(x, 'gteq', y);
    else
        raise exception 'it has the test %, which is not supported', test;
    end case;
end
$body$;

{# A text in another case. Beyond ASCII the server's locale would decide. #}
create or replace function {{ dbt_nn.db_function('chat_case') }} (name text, x text)
returns text language plpgsql immutable parallel safe
as $body$
begin
    if x ~ '[^\x01-\x7F]' then
        raise exception 'it changes the case of a text beyond ASCII, which is not supported';
    elsif name = 'title' and x !~ '^[A-Za-z]*$' then
        raise exception 'it writes a title of several words, which is not supported';
    end if;
    x := x collate "C";
    return case name
        when 'upper' then upper(x collate "C")
        when 'lower' then lower(x collate "C")
        else upper(left(x, 1) collate "C") || lower(substr(x, 2) collate "C")
    end;
end
$body$;

{# JSON as json.dumps(x, ensure_ascii=False) writes it. #}
create or replace function {{ dbt_nn.db_function('chat_json') }} (x jsonb)
returns text language plpgsql immutable parallel safe
as $body$
begin
    if x is null then
        raise exception 'Object of type Undefined is not JSON serializable';
    elsif exists (
        select from jsonb_path_query(x, 'strict $.** ? (@.type() == "object")') as part
        where (select count(*) from jsonb_object_keys(part)) > 1
    ) then
        raise exception 'it writes a mapping as JSON, whose keys have no order here';
    end if;
    return x::text;
end
$body$;

{# x|filter(arguments, name=value). #}
create or replace function {{ dbt_nn.db_function('chat_filter') }} (
    name text, x jsonb, arguments jsonb[], named jsonb
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    items jsonb[];
    found jsonb := '[]';
    item jsonb;
    part jsonb;
    key text;
    is_chosen boolean;
begin
    if named <> '{}' and not (
        name = 'map' and named - 'attribute' = '{}'
        or name in ('default', 'd') and named - 'default_value' - 'boolean' = '{}'
        or name = 'tojson' and named - 'ensure_ascii' = '{}' and named ->> 'ensure_ascii' = 'false'
    ) then
        raise exception 'it has the filter % with %, which is not supported', name, named;
    end if;
    case name
    when 'trim' then
        return to_jsonb(btrim(
            {{ dbt_nn.db_function('chat_text_of') }}(x),
            case
                when arguments[1] is null then {{ blanks }}
                else {{ dbt_nn.db_function('chat_string') }}(arguments[1], 'it trims characters')
            end
        ));
    when 'tojson' then
        return to_jsonb({{ dbt_nn.db_function('chat_json') }}(x));
    when 'string' then
        return to_jsonb({{ dbt_nn.db_function('chat_text_of') }}(x));
    when 'upper', 'lower', 'title', 'capitalize' then
        return to_jsonb({{ dbt_nn.db_function('chat_case') }}(
            name, {{ dbt_nn.db_function('chat_text_of') }}(x)
        ));
    when 'length', 'count' then
        case coalesce(jsonb_typeof(x), 'undefined')
        when 'string' then
            return to_jsonb(length(x #>> '{}'));
        when 'array' then
            return to_jsonb(jsonb_array_length(x));
        when 'object' then
            return to_jsonb((select count(*) from jsonb_object_keys(x)));
        when 'undefined' then
            return '0';
        else
            raise exception 'it asks for the length of %', left(x::text, 100);
        end case;
    when 'default', 'd' then
        if x is null or not {{ dbt_nn.db_function('chat_truth') }}(x)
            and {{ dbt_nn.db_function('chat_truth') }}(coalesce(arguments[2], named -> 'boolean'))
        then
            return coalesce(arguments[1], named -> 'default_value', '""');
        end if;
        return x;
    when 'list' then
        return to_jsonb({{ dbt_nn.db_function('chat_items') }}(x));
    when 'first' then
        return ({{ dbt_nn.db_function('chat_items') }}(x))[1];
    when 'last' then
        items := {{ dbt_nn.db_function('chat_items') }}(x);
        return items[cardinality(items)];
    when 'reverse' then
        return {{ dbt_nn.db_function('chat_slice') }}(x, null, null, -1);
    when 'join' then
        return to_jsonb((
            select coalesce(string_agg(
                {{ dbt_nn.db_function('chat_text_of') }}(listed.item),
                coalesce({{ dbt_nn.db_function('chat_text_of') }}(arguments[1]), '')
                order by listed.i
            ), '')
            from unnest({{ dbt_nn.db_function('chat_items') }}(x)) with ordinality as listed (item, i)
        ));
    when 'replace' then
        return {{ dbt_nn.db_function('chat_method') }}(
            'replace', to_jsonb({{ dbt_nn.db_function('chat_text_of') }}(x)), arguments
        );
    when 'int' then
        if jsonb_typeof(x) = 'number' then
            return to_jsonb(trunc(x::numeric));
        elsif jsonb_typeof(x) = 'string' and x #>> '{}' ~ '^[+-]?[0-9]+$' then
            return to_jsonb((x #>> '{}')::numeric);
        end if;
        return coalesce(arguments[1], '0');
    when 'map', 'select', 'reject', 'selectattr', 'rejectattr' then
        foreach item in array {{ dbt_nn.db_function('chat_items') }}(x) loop
            part := item;
            if name in ('selectattr', 'rejectattr') or named ? 'attribute' then
                foreach key in array string_to_array(
                    {{ dbt_nn.db_function('chat_string') }}(
                        coalesce(named -> 'attribute', arguments[1]), 'it asks for the attribute'
                    ), '.'
                ) loop
                    part := {{ dbt_nn.db_function('chat_item') }}(part, to_jsonb(key), '{}');
                end loop;
            end if;
            if name = 'map' then
                if not named ? 'attribute' then
                    part := {{ dbt_nn.db_function('chat_filter') }}(
                        arguments[1] #>> '{}', item, arguments[2 :], '{}'
                    );
                end if;
                if part is null then
                    raise exception 'it makes a list with what is undefined';
                end if;
                found := found || jsonb_build_array(part);
                continue;
            end if;
            if name in ('selectattr', 'rejectattr') then
                is_chosen := case
                    when cardinality(arguments) < 2 then {{ dbt_nn.db_function('chat_truth') }}(part)
                    else {{ dbt_nn.db_function('chat_test') }}(arguments[2] #>> '{}', part, arguments[3])
                end;
            else
                is_chosen := case
                    when cardinality(arguments) < 1 then {{ dbt_nn.db_function('chat_truth') }}(part)
                    else {{ dbt_nn.db_function('chat_test') }}(arguments[1] #>> '{}', part, arguments[2])
                end;
            end if;
            if is_chosen = (name in ('select', 'selectattr')) then
                found := found || jsonb_build_array(item);
            end if;
        end loop;
        return found;
    else
        raise exception 'it has the filter %, which is not supported', name;
    end case;
end
$body$;

{# x.method(arguments), of a text or a mapping. #}
create or replace function {{ dbt_nn.db_function('chat_method') }} (
    name text, x jsonb, arguments jsonb[]
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    word text;
    other text;
    parts text[];
    most integer;
begin
    if jsonb_typeof(x) = 'object' and name = 'get' and not x ? '$namespace' then
        return coalesce(
            {{ dbt_nn.db_function('chat_item') }}(x, arguments[1], '{}'),
            case when cardinality(arguments) > 1 then arguments[2] else 'null' end
        );
    elsif jsonb_typeof(x) = 'object' and name in ('keys', 'values', 'items') then
        {# raises where their order shows #}
        parts := array(
            select key #>> '{}' from unnest({{ dbt_nn.db_function('chat_items') }}(x)) as key
        );
        return coalesce(
            (
                select jsonb_agg(case name
                    when 'keys' then to_jsonb(key)
                    when 'values' then x -> key
                    else jsonb_build_array(key, x -> key)
                end)
                from unnest(parts) as key
            ),
            '[]'
        );
    elsif jsonb_typeof(x) is distinct from 'string' then
        raise exception 'it calls %() of %', name, coalesce(left(x::text, 100), 'what is undefined');
    end if;
    if name not in (
        'strip', 'lstrip', 'rstrip', 'startswith', 'endswith', 'upper', 'lower', 'title',
        'capitalize', 'replace', 'find', 'count', 'join', 'split', 'rsplit'
    ) then
        raise exception 'it calls %(), which is not supported', name;
    end if;
    word := x #>> '{}';
    if cardinality(arguments) > 0 and jsonb_typeof(arguments[1]) = 'string' then
        other := arguments[1] #>> '{}';
    elsif cardinality(arguments) > 0 and coalesce(arguments[1] <> 'null', true)
        and not (name in ('startswith', 'endswith', 'join') and jsonb_typeof(arguments[1]) = 'array')
    then
        raise exception 'it calls %() with %, where a text is expected',
            name, coalesce(left(arguments[1]::text, 100), 'what is undefined');
    end if;
    if cardinality(arguments) > 1 and jsonb_typeof(arguments[2]) = 'number'
        and name in ('split', 'rsplit', 'replace')
    then
        most := nullif(greatest((arguments[2] #>> '{}')::integer, -1), -1);
    elsif cardinality(arguments) > 1 and name <> 'replace' then
        raise exception 'it calls %() with more than one argument, which is not supported', name;
    end if;
    case name
    when 'strip' then
        return to_jsonb(btrim(word, coalesce(other, {{ blanks }})));
    when 'lstrip' then
        return to_jsonb(ltrim(word, coalesce(other, {{ blanks }})));
    when 'rstrip' then
        return to_jsonb(rtrim(word, coalesce(other, {{ blanks }})));
    when 'startswith', 'endswith' then
        return to_jsonb(exists (
            select from jsonb_array_elements_text(
                case when other is null then arguments[1] else jsonb_build_array(other) end
            ) as affix
            where case name
                when 'startswith' then starts_with(word, affix)
                else right(word, length(affix)) = affix
            end
        ));
    when 'upper', 'lower', 'title', 'capitalize' then
        return to_jsonb({{ dbt_nn.db_function('chat_case') }}(name, word));
    when 'replace' then
        if coalesce(other, '') = '' or cardinality(arguments) < 2 or most is not null
            or cardinality(arguments) > 2
        then
            raise exception 'it calls replace() in a way that is not supported';
        end if;
        return to_jsonb(replace(
            word, other, {{ dbt_nn.db_function('chat_string') }}(arguments[2], 'it replaces by')
        ));
    when 'find' then
        return to_jsonb(position(coalesce(other, '') in word) - 1);
    when 'count' then
        if coalesce(other, '') = '' then
            raise exception 'it counts nothing';
        end if;
        return to_jsonb((length(word) - length(replace(word, other, ''))) / length(other));
    when 'join' then
        return to_jsonb((
            select coalesce(string_agg(
                {{ dbt_nn.db_function('chat_string') }}(listed.item, 'it joins'), word order by listed.i
            ), '')
            from unnest({{ dbt_nn.db_function('chat_items') }}(arguments[1])) with ordinality as listed (item, i)
        ));
    when 'split', 'rsplit' then
        if other = '' then
            raise exception 'empty separator';
        elsif other is null then
            if most is not null then
                raise exception 'it calls %() in a way that is not supported', name;
            end if;
            parts := array_remove(string_to_array(translate(
                word, {{ blanks }}, repeat(' ', length({{ blanks }}))
            ), ' '), '');
        else
            parts := case when word = '' then array[''] else string_to_array(word, other) end;
        end if;
        if most < cardinality(parts) - 1 and name = 'split' then
            parts := parts[: most] || array_to_string(parts[most + 1 :], other);
        elsif most < cardinality(parts) - 1 then
            parts := array_to_string(parts[: cardinality(parts) - most], other)
            || parts[cardinality(parts) - most + 1 :];
        end if;
        return to_jsonb(parts);
    end case;
end
$body$;

{# function(arguments, name=value). #}
create or replace function {{ dbt_nn.db_function('chat_call') }} (
    name text, arguments jsonb[], named jsonb
)
returns jsonb language plpgsql stable
as $body$
declare
    bounds integer[];
begin
    case name
    when 'raise_exception' then
        raise exception '%', {{ dbt_nn.db_function('chat_text_of') }}(arguments[1]);
    when 'strftime_now' then
        return to_jsonb({{ dbt_nn.db_function('chat_time') }}(
            {{ dbt_nn.db_function('chat_string') }}(arguments[1], 'it asks for the time in the format'),
            localtimestamp
        ));
    when 'range' then
        bounds := array(
            select (x #>> '{}')::integer from unnest(arguments) with ordinality as listed (x, i)
            order by i
        );
        if cardinality(bounds) = 1 then
            bounds := 0 || bounds;
        end if;
        bounds := bounds || 1;
        if abs(bounds[2]::bigint - bounds[1]) / greatest(abs(bounds[3]), 1) > 100000 then
            raise exception 'range is too large';
        end if;
        return to_jsonb(array(
            select generate_series(bounds[1], bounds[2] - sign(bounds[3])::integer, bounds[3])
        ));
    when 'dict' then
        if cardinality(arguments) = 0 then
            return named;
        end if;
        raise exception 'it calls dict() in a way that is not supported';
    else
        raise exception 'it calls %(), which is not supported', name;
    end case;
end
$body$;

{# datetime.strftime(), in English. #}
create or replace function {{ dbt_nn.db_function('chat_time') }} (format text, at timestamp)
returns text language plpgsql immutable parallel safe
as $body$
declare
    part text;
    code text;
    found text := '';
begin
    foreach part in array array(
        select match[1] from regexp_matches(format, '(%.?|[^%]+)', 'g') as match
    ) loop
        if part !~ '^%' then
            found := found || part;
            continue;
        end if;
        code := case substr(part, 2)
            when 'd' then 'DD' when 'm' then 'MM' when 'Y' then 'YYYY' when 'y' then 'YY'
            when 'b' then 'Mon' when 'B' then 'FMMonth' when 'a' then 'Dy' when 'A' then 'FMDay'
            when 'H' then 'HH24' when 'I' then 'HH12' when 'M' then 'MI' when 'S' then 'SS'
            when 'p' then 'AM' when 'j' then 'DDD' when 'F' then 'YYYY-MM-DD' when 'T' then 'HH24:MI:SS'
        end;
        if part = '%%' then
            found := found || '%';
        elsif code is null then
            raise exception 'it asks for the time in the format %, which is not supported', format;
        else
            found := found || to_char(at, code);
        end if;
    end loop;
    return found;
end
$body$;
{%- endmacro %}
