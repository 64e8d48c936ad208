{#- The values of a chat template, and what they are made of: see
    create_chat_functions(). -#}
{% macro create_chat_value_functions() -%}
{# A value as bool() has it. #}
create or replace function {{ dbt_nn.db_function('chat_truth') }} (x jsonb)
returns boolean language sql immutable parallel safe
as $body$
    select coalesce(x not in ('null', 'false', '0', '""', '[]', '{}'), false)
$body$;

{# A value as str() has it. Python writes lists and dicts as its own source. #}
create or replace function {{ dbt_nn.db_function('chat_text_of') }} (x jsonb)
returns text language plpgsql immutable parallel safe
as $body$
begin
    case jsonb_typeof(x)
    when 'string' then
        return x #>> '{}';
    when 'number' then
        return x #>> '{}';
    when 'boolean' then
        return initcap(x #>> '{}');
    when 'null' then
        return 'None';
    when 'array' then
        raise exception 'it writes a list where a text is expected';
    when 'object' then
        raise exception 'it writes a mapping where a text is expected';
    else
        return '';
    end case;
end
$body$;

{# A text, of a value that has to be one. #}
create or replace function {{ dbt_nn.db_function('chat_string') }} (x jsonb, what text)
returns text language plpgsql immutable parallel safe
as $body$
begin
    if jsonb_typeof(x) is distinct from 'string' then
        raise exception '% of %, where a text is expected',
            what, coalesce(left(x::text, 100), 'what is undefined');
    end if;
    return x #>> '{}';
end
$body$;

{# What a loop goes over. #}
create or replace function {{ dbt_nn.db_function('chat_items') }} (x jsonb)
returns jsonb[] language plpgsql immutable parallel safe
as $body$
begin
    case coalesce(jsonb_typeof(x), 'undefined')
    when 'undefined' then
        return '{}';
    when 'array' then
        return array(
            select item from jsonb_array_elements(x) with ordinality as listed (item, i)
            order by i
        );
    when 'string' then
        return array(
            select to_jsonb(letter)
            from string_to_table(x #>> '{}', null) with ordinality as listed (letter, i)
            order by i
        );
    when 'object' then
        {# jsonb does not keep the order of keys #}
        if x ? '$namespace' or x ? '$function' or (
            select count(*) > 1 from jsonb_object_keys(x)
        ) then
            raise exception 'it goes over the keys of a mapping, which have no order here';
        end if;
        return array(select to_jsonb(key) from jsonb_object_keys(x) as key);
    else
        raise exception 'it goes over %, which is no list', left(x::text, 100);
    end case;
end
$body$;

{# x.key and x[key]. #}
create or replace function {{ dbt_nn.db_function('chat_item') }} (
    x jsonb, key jsonb, vars jsonb
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    at integer;
begin
    if x is null then
        raise exception 'it asks for % of what is undefined', coalesce(key #>> '{}', 'an item');
    end if;
    if jsonb_typeof(x) = 'object' then
        if x ? '$namespace' then
            return nullif(
                vars -> '$spaces' -> (x ->> '$namespace') -> (key #>> '{}'),
                '{"$undefined": true}'
            );
        end if;
        return case when jsonb_typeof(key) = 'string' then x -> (key #>> '{}') end;
    end if;
    if jsonb_typeof(key) is distinct from 'number' then
        return null;
    end if;
    at := (key #>> '{}')::integer;
    if jsonb_typeof(x) = 'array' then
        return x -> at;
    end if;
    if jsonb_typeof(x) = 'string' then
        at := case when at < 0 then length(x #>> '{}') + at else at end;
        return case
            when at between 0 and length(x #>> '{}') - 1
                then to_jsonb(substr(x #>> '{}', at + 1, 1))
        end;
    end if;
    return null;
end
$body$;

{# x[start:stop:step]. #}
create or replace function {{ dbt_nn.db_function('chat_slice') }} (
    x jsonb, start integer, stop integer, step integer
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    items jsonb[];
    n integer;
    first integer;
    last integer;
    found jsonb;
begin
    if jsonb_typeof(x) is null or jsonb_typeof(x) not in ('array', 'string') then
        raise exception 'it takes a part of %, which is no list', coalesce(left(x::text, 100), 'what is undefined');
    end if;
    items := {{ dbt_nn.db_function('chat_items') }}(x);
    n := cardinality(items);
    step := coalesce(step, 1);
    if step = 0 then
        raise exception 'slice step cannot be zero';
    end if;
    {# as Python's slice.indices() #}
    first := case
        when start is null then case when step > 0 then 0 else n - 1 end
        when start < 0 then greatest(start + n, case when step > 0 then 0 else -1 end)
        else least(start, case when step > 0 then n else n - 1 end)
    end;
    last := case
        when stop is null then case when step > 0 then n else -1 end
        when stop < 0 then greatest(stop + n, case when step > 0 then 0 else -1 end)
        else least(stop, case when step > 0 then n else n - 1 end)
    end;
    found := (
        select coalesce(jsonb_agg(items[at + 1] order by i), '[]')
        from generate_series(first, last - sign(step)::integer, step)
            with ordinality as taken (at, i)
    );
    if jsonb_typeof(x) = 'string' then
        return to_jsonb((
            select coalesce(string_agg(letter, '' order by i), '')
            from jsonb_array_elements_text(found) with ordinality as taken (letter, i)
        ));
    end if;
    return found;
end
$body$;

{# x == y, x < y and their like. #}
create or replace function {{ dbt_nn.db_function('chat_compares') }} (
    x jsonb, operator text, y jsonb
)
returns boolean language plpgsql immutable parallel safe
as $body$
begin
    case operator
    when 'eq' then
        {# True == 1 #}
        if jsonb_typeof(x) = 'boolean' and jsonb_typeof(y) = 'number' then
            return to_jsonb((x::boolean)::integer) = y;
        elsif jsonb_typeof(x) = 'number' and jsonb_typeof(y) = 'boolean' then
            return x = to_jsonb((y::boolean)::integer);
        end if;
        return x is not distinct from y;
    when 'ne' then
        return not {{ dbt_nn.db_function('chat_compares') }}(x, 'eq', y);
    when 'in' then
        if y is null then
            return false;
        elsif jsonb_typeof(y) = 'string' then
            return position(
                {{ dbt_nn.db_function('chat_string') }}(x, '"in" a text') in (y #>> '{}')
            ) > 0;
        elsif jsonb_typeof(y) = 'object' then
            return jsonb_typeof(x) is not distinct from 'string' and y ? (x #>> '{}');
        end if;
        return exists (
            select from unnest({{ dbt_nn.db_function('chat_items') }}(y)) as item
            where {{ dbt_nn.db_function('chat_compares') }}(x, 'eq', item)
        );
    when 'notin' then
        return not {{ dbt_nn.db_function('chat_compares') }}(x, 'in', y);
    else
        if jsonb_typeof(x) is distinct from jsonb_typeof(y)
            or coalesce(jsonb_typeof(x), '') not in ('number', 'string')
        then
            raise exception 'it compares % and %, which have no order',
                coalesce(left(x::text, 100), 'what is undefined'),
                coalesce(left(y::text, 100), 'what is undefined');
        end if;
        if jsonb_typeof(x) = 'number' then
            return case operator
                when 'lt' then x::numeric < y::numeric
                when 'lteq' then x::numeric <= y::numeric
                when 'gt' then x::numeric > y::numeric
                else x::numeric >= y::numeric
            end;
        end if;
        return case operator
            when 'lt' then (x #>> '{}') collate "C" < y #>> '{}'
            when 'lteq' then (x #>> '{}') collate "C" <= y #>> '{}'
            when 'gt' then (x #>> '{}') collate "C" > y #>> '{}'
            else (x #>> '{}') collate "C" >= y #>> '{}'
        end;
    end case;
end
$body$;

{# x + y and its like. #}
create or replace function {{ dbt_nn.db_function('chat_arithmetic') }} (
    operator text, x jsonb, y jsonb
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    a numeric;
    b numeric;
begin
    if length(x #>> '{}') + length(y #>> '{}') > {{ dbt_nn.chat_length() }} then
        raise exception 'it makes a text of more than {{ dbt_nn.chat_length() }} characters';
    end if;
    if operator = 'add' and jsonb_typeof(x) = 'string' and jsonb_typeof(y) = 'string' then
        return to_jsonb((x #>> '{}') || (y #>> '{}'));
    elsif operator = 'add' and jsonb_typeof(x) = 'array' and jsonb_typeof(y) = 'array' then
        return x || y;
    elsif operator = 'mul' and jsonb_typeof(x) = 'string' and jsonb_typeof(y) = 'number' then
        if length(x #>> '{}') * y::numeric > {{ dbt_nn.chat_length() }} then
            raise exception 'it repeats a text too often';
        end if;
        return to_jsonb(repeat(x #>> '{}', y::integer));
    elsif jsonb_typeof(x) is distinct from 'number' or jsonb_typeof(y) is distinct from 'number' then
        raise exception 'it cannot % % and %',
            case operator when 'add' then 'add' when 'sub' then 'subtract' else 'calculate with' end,
            coalesce(left(x::text, 100), 'what is undefined'),
            coalesce(left(y::text, 100), 'what is undefined');
    end if;
    a := x::numeric;
    b := y::numeric;
    {# of whole numbers; those of Python's float are rounded otherwise #}
    if scale(a) > 0 or scale(b) > 0 or operator = 'div' then
        raise exception 'it calculates with numbers that are not whole, which is not supported';
    end if;
    return to_jsonb(case operator
        when 'add' then a + b
        when 'sub' then a - b
        when 'mul' then a * b
        when 'floordiv' then floor(a / b)
        when 'mod' then a - b * floor(a / b)
    end);
end
$body$;

{# The variables with a value under a name, or with its items under several. #}
create or replace function {{ dbt_nn.db_function('chat_bound') }} (
    vars jsonb, targets jsonb, x jsonb
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    items jsonb[];
begin
    if jsonb_array_length(targets) = 1 then
        return vars || jsonb_build_object(targets ->> 0, coalesce(x, '{"$undefined": true}'));
    end if;
    items := {{ dbt_nn.db_function('chat_items') }}(x);
    if cardinality(items) <> jsonb_array_length(targets) then
        raise exception 'it takes % values where there are %',
            jsonb_array_length(targets), cardinality(items);
    end if;
    for i in 1 .. cardinality(items) loop
        vars := vars || jsonb_build_object(targets ->> i - 1, items[i]);
    end loop;
    return vars;
end
$body$;

{# The value of an instruction: the variables are those of chat_body. #}
create or replace function {{ dbt_nn.db_function('chat_value') }} (
    node jsonb, given jsonb, vars jsonb
)
returns jsonb language plpgsql stable
as $body$
declare
    x jsonb;
    y jsonb;
    items jsonb[];
    named jsonb;
begin
    case node ->> 0
    when 'const' then
        return node -> 1;
    when 'name' then
        x := coalesce(vars -> (node ->> 1), given -> (node ->> 1));
        if x is null and node ->> 1 in ('raise_exception', 'strftime_now', 'range', 'namespace', 'dict') then
            return jsonb_build_object('$function', node -> 1);
        end if;
        return nullif(x, '{"$undefined": true}');
    when 'item' then
        return {{ dbt_nn.db_function('chat_item') }}(
            {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars),
            {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars),
            vars
        );
    when 'and' then
        x := {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars);
        if not {{ dbt_nn.db_function('chat_truth') }}(x) then
            return x;
        end if;
        return {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars);
    when 'or' then
        x := {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars);
        if {{ dbt_nn.db_function('chat_truth') }}(x) then
            return x;
        end if;
        return {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars);
    when 'not' then
        return to_jsonb(not {{ dbt_nn.db_function('chat_truth') }}(
            {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars)
        ));
    when 'if_else' then
        if {{ dbt_nn.db_function('chat_truth') }}(
            {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars)
        ) then
            return {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars);
        elsif node -> 3 = 'null' then
            return null;
        end if;
        return {{ dbt_nn.db_function('chat_value') }}(node -> 3, given, vars);
    when 'compare' then
        x := {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars);
        for i in 0 .. jsonb_array_length(node -> 2) - 1 loop
            y := {{ dbt_nn.db_function('chat_value') }}(node -> 2 -> i -> 1, given, vars);
            if not {{ dbt_nn.db_function('chat_compares') }}(x, node -> 2 -> i ->> 0, y) then
                return 'false';
            end if;
            x := y;
        end loop;
        return 'true';
    when 'add', 'sub', 'mul', 'div', 'floordiv', 'mod' then
        return {{ dbt_nn.db_function('chat_arithmetic') }}(
            node ->> 0,
            {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars),
            {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars)
        );
    when 'neg' then
        return {{ dbt_nn.db_function('chat_arithmetic') }}(
            'sub', '0', {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars)
        );
    when 'slice' then
        return {{ dbt_nn.db_function('chat_slice') }}(
            {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars),
            {{ dbt_nn.db_function('chat_bound_of_slice') }}(node -> 2, given, vars),
            {{ dbt_nn.db_function('chat_bound_of_slice') }}(node -> 3, given, vars),
            {{ dbt_nn.db_function('chat_bound_of_slice') }}(node -> 4, given, vars)
        );
    when 'concat' then
        x := '""';
        foreach y in array {{ dbt_nn.db_function('chat_values') }}(node -> 1, given, vars) loop
            x := {{ dbt_nn.db_function('chat_arithmetic') }}(
                'add', x, to_jsonb({{ dbt_nn.db_function('chat_text_of') }}(y))
            );
        end loop;
        return x;
    when 'list' then
        return to_jsonb({{ dbt_nn.db_function('chat_values') }}(node -> 1, given, vars));
    when 'dict' then
        x := '{}';
        for i in 0 .. jsonb_array_length(node -> 1) - 1 loop
            x := x || jsonb_build_object(
                {{ dbt_nn.db_function('chat_string') }}(
                    {{ dbt_nn.db_function('chat_value') }}(node -> 1 -> i -> 0, given, vars),
                    'a key'
                ),
                {{ dbt_nn.db_function('chat_value') }}(node -> 1 -> i -> 1, given, vars)
            );
        end loop;
        return x;
    when 'test' then
        return to_jsonb({{ dbt_nn.db_function('chat_test') }}(
            node ->> 1,
            {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars),
            ({{ dbt_nn.db_function('chat_values') }}(node -> 3, given, vars))[1]
        ));
    when 'filter' then
        x := {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars);
        items := {{ dbt_nn.db_function('chat_values') }}(node -> 3, given, vars);
        named := {{ dbt_nn.db_function('chat_named') }}(node -> 4, given, vars);
        return {{ dbt_nn.db_function('chat_filter') }}(node ->> 1, x, items, named);
    when 'method' then
        x := {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars);
        items := {{ dbt_nn.db_function('chat_values') }}(node -> 3, given, vars);
        if node -> 4 <> '{}' then
            raise exception 'it calls % with names, which is not supported', node ->> 2;
        end if;
        return {{ dbt_nn.db_function('chat_method') }}(node ->> 2, x, items);
    when 'call' then
        items := {{ dbt_nn.db_function('chat_values') }}(node -> 2, given, vars);
        named := {{ dbt_nn.db_function('chat_named') }}(node -> 3, given, vars);
        return {{ dbt_nn.db_function('chat_call') }}(node ->> 1, items, named);
    when 'unsupported' then
        raise exception 'it has %, which is not supported', node ->> 1;
    end case;
end
$body$;

create or replace function {{ dbt_nn.db_function('chat_values') }} (
    nodes jsonb, given jsonb, vars jsonb
)
returns jsonb[] language plpgsql stable
as $body$
declare
    found jsonb[] := '{}';
begin
    for i in 0 .. jsonb_array_length(nodes) - 1 loop
        found := found || array[{{ dbt_nn.db_function('chat_value') }}(nodes -> i, given, vars)];
    end loop;
    return found;
end
$body$;

create or replace function {{ dbt_nn.db_function('chat_named') }} (
    nodes jsonb, given jsonb, vars jsonb
)
returns jsonb language plpgsql stable
as $body$
declare
    found jsonb := '{}';
    name text;
begin
    for name in select jsonb_object_keys(nodes) loop
        found := found || jsonb_build_object(
            name, {{ dbt_nn.db_function('chat_value') }}(nodes -> name, given, vars)
        );
    end loop;
    return found;
end
$body$;

{# An end of a slice; NULL where there is none. #}
create or replace function {{ dbt_nn.db_function('chat_bound_of_slice') }} (
    node jsonb, given jsonb, vars jsonb
)
returns integer language plpgsql stable
as $body$
declare
    x jsonb;
begin
    if node = 'null' then
        return null;
    end if;
    x := {{ dbt_nn.db_function('chat_value') }}(node, given, vars);
    if x = 'null' then
        return null;
    elsif jsonb_typeof(x) is distinct from 'number' then
        raise exception 'slice indices must be integers or None';
    end if;
    return (x #>> '{}')::integer;
end
$body$;

{# set name = namespace(key=value): the variables with it. #}
create or replace function {{ dbt_nn.db_function('chat_namespace') }} (
    node jsonb, given jsonb, vars jsonb
)
returns jsonb language plpgsql stable
as $body$
declare
    key text := 'n' || (select count(*) from jsonb_object_keys(vars -> '$spaces'));
begin
    if jsonb_array_length(node -> 1) <> 1 or node -> 2 -> 2 <> '[]' then
        raise exception 'it makes a namespace of a mapping, which is not supported';
    end if;
    return vars
    || jsonb_build_object(
        '$spaces',
        (vars -> '$spaces') || jsonb_build_object(
            key, {{ dbt_nn.db_function('chat_named') }}(node -> 2 -> 3, given, vars)
        ),
        node -> 1 ->> 0,
        jsonb_build_object('$namespace', key)
    );
end
$body$;

{# set name.key = value: the variables with it. #}
create or replace function {{ dbt_nn.db_function('chat_attribute_set') }} (
    node jsonb, vars jsonb, x jsonb
)
returns jsonb language plpgsql immutable parallel safe
as $body$
declare
    key text := vars -> (node ->> 1) ->> '$namespace';
begin
    if key is null then
        raise exception 'cannot assign attribute on non-namespace object';
    end if;
    return jsonb_set(
        vars, array['$spaces', key, node ->> 2], coalesce(x, '{"$undefined": true}')
    );
end
$body$;
{%- endmacro %}
