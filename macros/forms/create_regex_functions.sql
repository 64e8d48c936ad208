{#-
    The database functions that read a regular expression: the first step from what an
    answer may be to the tokens that may come next.

    The syntax is that of Python's re without what looks around or back: literals, ., [],
    escapes, groups, |, *, +, ?, {n,m}, and ^ and $ at the two ends. The whole answer
    has to match. \d, \w and \s are ASCII's, as with re.ASCII. No expression matches
    U+0000, which no text of PostgreSQL holds.
-#}
{% macro create_regex_functions() -%}
    {#
        The characters that an escape names, from the backslash on, and how many
        characters of the expression it takes. In a class, \b is a backspace.
    #}
    create or replace function {{ dbt_nn.db_function('regex_escape') }} (
        escape text, in_class boolean, out class int4multirange, out length integer
    ) language plpgsql immutable strict parallel safe as $body$
    declare
        anything constant int4multirange := {{ dbt_nn.any_character() }};
        letter constant text := substr(escape, 2, 1);
        code text;
    begin
        length := 2;
        class := case lower(letter)
            when 'd' then '{[48,58)}'
            when 'w' then '{[48,58),[65,91),[95,96),[97,123)}'
            when 's' then '{[9,14),[32,33)}'
        end;
        if class is not null then
            if letter in ('D', 'W', 'S') then
                class := anything - class;
            end if;
            return;
        end if;
        if letter in ('x', 'u', 'U') then
            code := substring(
                escape from case letter
                    when 'x' then '^\\x([0-9A-Fa-f]{2})'
                    when 'u' then '^\\u([0-9A-Fa-f]{4})'
                    else '^\\U(00[01][0-9A-Fa-f]{5})'
                end
            );
            if code is null then
                raise invalid_regular_expression using message = format(
                    'the escape \%s needs %s hexadecimal digits', letter,
                    case letter when 'x' then 2 when 'u' then 4 else 8 end
                );
            end if;
            length := 2 + char_length(code);
            code := ('x' || lpad(code, 8, '0'))::bit(32)::integer::text;
        else
            code := ascii(case
                when letter = '' then null
                when letter = 'b' and in_class then E'\b'
                when letter ~ '^[nrtfva]$' then translate(letter, 'nrtfva', E'\n\r\t\f\x0b\x07')
                when letter !~ '^[A-Za-z0-9]$' then letter
            end)::text;
        end if;
        if code is null then
            raise invalid_regular_expression using message = case
                when letter = '' then 'a backslash ends it'
                when letter ~ '[1-9]' then format('the reference \%s back is not supported', letter)
                else format('the escape \%s is not supported', letter)
            end;
        end if;
        class := int4multirange(int4range(code::integer, code::integer + 1));
    end
    $body$;

    {#
        The characters of a class, from its [ on, and how many characters of the
        expression it takes.
    #}
    create or replace function {{ dbt_nn.db_function('regex_class') }} (
        input text, out class int4multirange, out length integer
    ) language plpgsql immutable strict parallel safe as $body$
    declare
        negated constant boolean := substr(input, 2, 1) = '^';
        place integer := case when negated then 3 else 2 end;
        first_place constant integer := place;
        one record;
        low int4multirange;  -- of a range whose end is awaited
        is_open boolean := false;
    begin
        class := '{}';
        loop
            if place > char_length(input) then
                raise invalid_regular_expression using message = 'a [ is never closed';
            end if;
            exit when substr(input, place, 1) = ']' and place > first_place;
            if substr(input, place, 2) ~ '^\[[:.=]$' then
                raise invalid_regular_expression using message = format(
                    'classes with names, %s…, are not supported', substr(input, place, 2)
                );
            elsif substr(input, place, 1) = '\' then
                select found.class, found.length into one
                from {{ dbt_nn.db_function('regex_escape') }}(substr(input, place, 10), true) as found;
            else
                select
                    int4multirange(int4range(code, code + 1)) as class,
                    1 as length
                into one
                from ascii(substr(input, place, 1)) as code;
            end if;
            place := place + one.length;
            if is_open then
                if upper(one.class) - lower(one.class) <> 1
                    or lower(one.class) < lower(low) then
                    raise invalid_regular_expression using message =
                        'a range of a class, like a-z, ends before it begins';
                end if;
                class := class + int4multirange(int4range(lower(low), upper(one.class)));
                is_open := false;
            elsif substr(input, place, 1) = '-' and substr(input, place + 1, 1) not in (']', '')
                and upper(one.class) - lower(one.class) = 1 then
                low := one.class;
                is_open := true;
                place := place + 1;
            else
                class := class + one.class;
            end if;
        end loop;
        length := place;
        class := case
            when negated then {{ dbt_nn.any_character() }} - class
            else class * {{ dbt_nn.any_character() }}
        end;
    end
    $body$;

    {#
        A regular expression in postfix notation: each item is a class of characters (an
        int4multirange of code points), 'empty', or an operator on what is before it:
        'concat' and 'alternate' on two, 'star', 'plus' and 'optional' on one (Dijkstra's
        shunting yard). A repetition {n,m} is written out.

        (?j: … ) is a group of characters that JSON writes as they are.
    #}
    create or replace function {{ dbt_nn.db_function('regex_postfix') }} (regex text)
    returns text[] language plpgsql immutable strict parallel safe as $body$
    declare
        anything constant int4multirange := {{ dbt_nn.any_character() }};
        n constant integer := char_length(regex);
        items text[] := '{}';
        starts integer[] := '{}';  -- where each operand begins in items
        waiting text[] := '{}';  -- operators and open groups
        place integer := 1;
        awaits_operand boolean := true;
        is_repeated boolean := false;  -- what comes right after a quantifier
        character text;
        class int4multirange;
        length integer;
        bounds text[];
        operand text[];
        least_times integer;
        most_times integer;
        json_groups integer := 0;
    begin
        while place <= n loop
            character := substr(regex, place, 1);
            class := null;
            length := 1;
            bounds := null;

            if character = '(' then
                if substr(regex, place, 2) = '(?' then
                    length := char_length(substring(
                        substr(regex, place, 80)
                        from '^\(\?(?::|j:|P?<[A-Za-z_][A-Za-z0-9_]*>)'
                    ));
                    if length is null then
                        raise invalid_regular_expression using message = format(
                            'groups that begin with %s are not supported: use ( … ) or (?: … )',
                            substr(regex, place, 3)
                        );
                    end if;
                end if;
                if not awaits_operand then
                    waiting := waiting || 'concat'::text;
                end if;
                waiting := waiting || case
                    when substr(regex, place, 4) = '(?j:' then '(j' else '('
                end;
                json_groups := json_groups + (substr(regex, place, 4) = '(?j:')::integer;
                awaits_operand := true;
                is_repeated := false;
                place := place + length;
                continue;
            elsif character in ('|', ')') then
                if awaits_operand then
                    items := items || 'empty'::text;
                    starts := starts || cardinality(items);
                end if;
                {{ dbt_nn.regex_apply("waiting[cardinality(waiting)] in ('concat', 'alternate')") | indent(16) }}
                if character = '|' then
                    waiting := waiting || 'alternate'::text;
                elsif cardinality(waiting) = 0 then
                    raise invalid_regular_expression using message = 'a ) has no (';
                else
                    json_groups := json_groups
                    - (waiting[cardinality(waiting)] = '(j')::integer;
                    waiting := trim_array(waiting, 1);
                end if;
                awaits_operand := character = '|';
                is_repeated := false;
                place := place + 1;
                continue;
            elsif character = '^' and place = 1 or character = '$' and place = n then
                place := place + 1;
                continue;
            elsif character in ('^', '$') then
                raise invalid_regular_expression using message = format(
                    'the whole answer has to match: %s may only be at the %s', character,
                    case character when '^' then 'beginning' else 'end' end
                );
            end if;

            bounds := case character
                when '*' then array['0', '']
                when '+' then array['1', '']
                when '?' then array['0', '1']
                when '{' then (
                    select array[
                        coalesce(nullif(found.parts[1], ''), '0'),
                        case when found.parts[2] is null then found.parts[1] else found.parts[3] end
                    ]
                    from regexp_match(
                        substr(regex, place, 30), '^\{([0-9]*)(,([0-9]*))?\}'
                    ) as found (parts)
                    where found.parts[1] <> '' or found.parts[2] <> ''
                )
            end;
            if bounds is not null then
                if character = '{' then
                    length := position('}' in substr(regex, place));
                end if;
                if is_repeated and character = '?' then  -- lazy: of the same language
                    is_repeated := false;
                    place := place + 1;
                    continue;
                end if;
                if awaits_operand or is_repeated then
                    raise invalid_regular_expression using message = format(
                        'the quantifier %s has nothing to repeat',
                        substr(regex, place, length)
                    );
                end if;
                if char_length(bounds[1]) > 5 or char_length(bounds[2]) > 5 then
                    raise invalid_regular_expression using message = format(
                        'the repetition %s is too large', substr(regex, place, length)
                    );
                end if;
                least_times := bounds[1]::integer;
                most_times := nullif(bounds[2], '')::integer;
                if most_times < least_times then
                    raise invalid_regular_expression using message = format(
                        'the repetition %s ends before it begins',
                        substr(regex, place, length)
                    );
                end if;
                operand := items[starts[cardinality(starts)]:];
                if cardinality(operand) * greatest(least_times, most_times, 1) > 30000 then
                    raise invalid_regular_expression using message = format(
                        'the repetition %s is too large', substr(regex, place, length)
                    );
                end if;
                items := items[: starts[cardinality(starts)] - 1];
                if most_times = 0 then
                    items := items || 'empty'::text;
                elsif most_times is null then
                    for i in 2..least_times loop
                        items := items || operand;
                    end loop;
                    items := items || operand
                    || case least_times when 0 then 'star' else 'plus' end;
                    for i in 2..least_times loop
                        items := items || 'concat'::text;
                    end loop;
                else
                    for i in 1..most_times loop
                        items := items || operand;
                    end loop;
                    {#- the operand, and as an option what follows, which is within -#}
                    for i in reverse most_times..1 loop
                        if i < most_times then
                            items := items || 'concat'::text;
                        end if;
                        if i > least_times then
                            items := items || 'optional'::text;
                        end if;
                    end loop;
                end if;
                is_repeated := true;
                place := place + length;
                continue;
            end if;

            if character = '.' then
                class := anything - '{[10,11)}';
            elsif character = '[' then
                select found.class, found.length into class, length
                from {{ dbt_nn.db_function('regex_class') }}(substr(regex, place)) as found;
            elsif character = '\' and substr(regex, place, 2) = '\A' and place = 1
                or substr(regex, place) in ('\Z', '\z') then
                place := place + 2;
                continue;
            elsif character = '\' then
                select found.class, found.length into class, length
                from {{ dbt_nn.db_function('regex_escape') }}(substr(regex, place, 10), false) as found;
            else
                class := int4multirange(int4range(ascii(character), ascii(character) + 1));
            end if;
            class := class * anything;
            if json_groups > 0 then
                class := class - '{[0,32),[34,35),[92,93)}';
            end if;
            if isempty(class) then
                raise invalid_regular_expression using message = format(
                    '%s matches no character%s',
                    substr(regex, place, length),
                    case when json_groups > 0 then ' that JSON writes as it is' else '' end
                );
            end if;
            if not awaits_operand then
                {{ dbt_nn.regex_apply("waiting[cardinality(waiting)] = 'concat'") | indent(16) }}
                waiting := waiting || 'concat'::text;
            end if;
            items := items || class::text;
            starts := starts || cardinality(items);
            awaits_operand := false;
            is_repeated := false;
            place := place + length;
        end loop;

        if awaits_operand then
            items := items || 'empty'::text;
            starts := starts || cardinality(items);
        end if;
        {{ dbt_nn.regex_apply("waiting[cardinality(waiting)] in ('concat', 'alternate')") | indent(8) }}
        if cardinality(waiting) > 0 then
            raise invalid_regular_expression using message = 'a ( is never closed';
        end if;
        return items;
    end
    $body$;
{%- endmacro %}


{#- Statements that write the operators which wait, while `condition` holds. -#}
{% macro regex_apply(condition) -%}
while {{ condition }} loop
    items := items || waiting[cardinality(waiting)];
    waiting := trim_array(waiting, 1);
    starts := trim_array(starts, 1);
end loop;
{%- endmacro %}


{#- The code points that a text of PostgreSQL may have: an int4multirange. -#}
{% macro any_character() -%}
    '{[1,55296),[57344,1114112)}'::int4multirange
{%- endmacro %}
