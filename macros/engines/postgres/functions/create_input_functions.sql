{#-
    The database functions that look at what a user hands over: a relation's columns
    and the names of options.
-#}
{% macro create_input_functions() -%}
    {# Raises the problem as the statement's error; true where there is none. #}
    create or replace function {{ dbt_nn.db_function('check_input') }} (problem text)
    returns boolean language plpgsql as $body$
    begin
        if problem is not null then
            raise exception '%', problem;
        end if;
        return true;
    end
    $body$;

    {# A domain's type, that type's if it is a domain, and so on. #}
    create or replace function {{ dbt_nn.db_function('base_type') }} (type regtype)
    returns regtype language plpgsql stable strict as $body$
    declare
        base oid;
    begin
        loop
            select typbasetype into base
            from pg_type
            where oid = type and typtype = 'd';
            exit when not found;
            type := base;
        end loop;
        return type;
    end
    $body$;

    {#
        Letters to insert, delete, replace, or swap with the next one, to make b of a:
        the optimal string alignment distance (Boytsov 2011).
    #}
    create or replace function {{ dbt_nn.db_function('edit_distance') }} (a text, b text)
    returns integer language plpgsql immutable strict as $body$
    declare
        n constant integer := length(b);
        above integer[];
        last integer[];
        line integer[] := array(select generate_series(0, n));
    begin
        for i in 1..length(a) loop
            above := last;
            last := line;
            line := array[i];
            for j in 1..n loop
                line[j + 1] := least(
                    last[j + 1] + 1,
                    line[j] + 1,
                    last[j] + (substr(a, i, 1) <> substr(b, j, 1))::integer,
                    case when i > 1 and j > 1
                        and substr(a, i, 1) = substr(b, j - 1, 1)
                        and substr(a, i - 1, 1) = substr(b, j, 1)
                        then above[j - 1] + 1
                    end
                );
            end loop;
        end loop;
        return line[n + 1];
    end
    $body$;

    {#
        Which of the known names a name is a slip of the pen for; NULL if none. Case and
        underscores aside it is the same, or so near as is not by chance: seen and speed
        are a letter from seed, top_5 is from top_k.
    #}
    create or replace function {{ dbt_nn.db_function('meant_name') }} (
        given text, known text[]
    ) returns text language sql stable strict as $body$
        select candidate.name
        from (
            select
                option.name,
                {{ dbt_nn.db_function('edit_distance') }}(lower(given), option.name) as letters
            from unnest(known) as option (name)
            where abs(length(given) - length(option.name)) <= 3
        ) as candidate
        where given <> all(known)
            and (
                regexp_replace(lower(given), '[^[:alnum:]]', '', 'g')
                = replace(candidate.name, '_', '')
                or candidate.letters <= case
                    when length(candidate.name) >= 10 then 2
                    when length(candidate.name) > 5 then 1
                    when length(candidate.name) = 5
                        and right(given, 1) = right(candidate.name, 1)
                        then 1
                    else 0
                end
            )
        order by candidate.letters
        limit 1
    $body$;
{%- endmacro %}
