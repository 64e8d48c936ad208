{#-
    The tables and database functions of answers of a form: what a regular expression or
    a JSON schema allows is an automaton, and the tokens that it allows next are a join.

    form_automata       a form in use: its automaton, see create_automaton_functions.sql
    form_vocabularies   what the form sees of the vocabulary: tokens that are the same
                        to it are one row
    form_masks          of each state that a text has been in the tokens that may come
                        next, by the state that they lead to

    A form's rows are made when a batch needs them, and go with the last of its prompts.
    Unlogged as the layers are: after a crash of the server they are made again.
-#}
{% macro create_form_functions() -%}
    create unlogged table if not exists {{ dbt_nn.db_function('form_automata') }} (
        form_id uuid primary key,
        network text not null,
        alphabet integer not null,
        symbols bytea not null,
        transitions integer[] not null,
        distances integer[] not null
    );

    create unlogged table if not exists {{ dbt_nn.db_function('form_vocabularies') }} (
        form_id uuid not null references {{ dbt_nn.db_function('form_automata') }}
            on delete cascade,
        symbols bytea not null,
        token_ids integer[] not null,
        primary key (form_id, symbols)
    );

    create unlogged table if not exists {{ dbt_nn.db_function('form_masks') }} (
        form_id uuid not null references {{ dbt_nn.db_function('form_automata') }}
            on delete cascade,
        state integer not null,
        next_state integer not null,
        token_ids integer[] not null,
        primary key (form_id, state, next_state)
    );

    {{ dbt_nn.create_regex_functions() }}

    {{ dbt_nn.create_automaton_functions() }}

    {{ dbt_nn.create_json_list_functions() }}

    {{ dbt_nn.create_json_value_function() }}

    {{ dbt_nn.create_schema_functions() }}

    {# Of two forms, of which one is NULL, the regular expression. #}
    create or replace function {{ dbt_nn.db_function('form_regex') }} (regex text, json_schema text)
    returns text language sql immutable parallel safe as $body$
        select coalesce(regex, {{ dbt_nn.db_function('json_schema_regex') }}(json_schema::json))
    $body$;

    {#
        What is wrong with a form, NULL if nothing is, and how many bytes its shortest
        answer has that single bytes can write: as many tokens always suffice.

        bytes   those that are tokens of the vocabulary
    #}
    create or replace function {{ dbt_nn.db_function('examine_form') }} (
        regex text, json_schema text, bytes integer[], out problem text, out least_bytes integer
    ) language plpgsql immutable parallel safe as $body$
    declare
        automaton record;
    begin
        select made.* into automaton
        from {{ dbt_nn.db_function('regex_automaton') }}(
            {{ dbt_nn.db_function('form_regex') }}(regex, json_schema)
        ) as made;
        least_bytes := ({{ dbt_nn.db_function('automaton_distances') }}(
            automaton.alphabet,
            automaton.transitions,
            automaton.is_accepting,
            array(select get_byte(automaton.symbols, byte) from unnest(bytes) as byte)
        ))[1];
        if least_bytes is null then
            problem := 'no answer is of its form, or needs a byte that is no token';
        end if;
        problem := case when regex is null then 'json_schema: ' else 'regex: ' end || problem;
    exception
        when invalid_regular_expression or invalid_parameter_value or program_limit_exceeded then
            problem := case when regex is null then 'json_schema: ' else 'regex: ' end || sqlerrm;
    end
    $body$;

    {# Makes a form's automaton and its vocabulary, unless they are there. #}
    create or replace function {{ dbt_nn.db_function('make_form') }} (
        form uuid, of_network text, regex text, json_schema text, vocabulary text
    ) returns void language plpgsql as $body$
    declare
        automaton record;
        bytes integer[];
    begin
        if exists (
            select from {{ dbt_nn.db_function('form_automata') }} as made where made.form_id = form
        ) then
            return;
        end if;
        select made.* into automaton
        from {{ dbt_nn.db_function('regex_automaton') }}(
            {{ dbt_nn.db_function('form_regex') }}(regex, json_schema)
        ) as made;
        execute format(
            'select array_agg(get_byte(token, 0)) from %s '
            'where octet_length(token) = 1 and not special', vocabulary
        ) into bytes;
        insert into {{ dbt_nn.db_function('form_automata') }} (
            form_id, network, alphabet, symbols, transitions, distances
        )
        values (
            form,
            of_network,
            automaton.alphabet,
            automaton.symbols,
            automaton.transitions,
            {{ dbt_nn.db_function('automaton_distances') }}(
                automaton.alphabet,
                automaton.transitions,
                automaton.is_accepting,
                array(select get_byte(automaton.symbols, byte) from unnest(bytes) as byte)
            )
        )
        on conflict do nothing;
        if not found then  -- of another session, which has both
            return;
        end if;
        {# a byte is a character of Latin-1, so that translate() finds its symbol #}
        execute format(
            $query$
                insert into {{ dbt_nn.db_function('form_vocabularies') }} (form_id, symbols, token_ids)
                select $1, symbols, array_agg(token_id order by token_id)
                from (
                    select
                        token_id,
                        convert_to(
                            translate(convert_from(token, 'LATIN1'), $2, $3), 'LATIN1'
                        ) as symbols
                    from %s
                    where not special
                        and octet_length(token) > 0
                        and position('\x00'::bytea in token) = 0
                ) as token
                group by symbols
            $query$, vocabulary
        ) using
            form,
            (select string_agg(chr(byte), '' order by byte) from generate_series(1, 255) as byte),
            (
                select string_agg(chr(get_byte(automaton.symbols, byte)), '' order by byte)
                from generate_series(1, 255) as byte
            );
    end
    $body$;

    {# Makes the masks of a state, unless they are there. #}
    create or replace function {{ dbt_nn.db_function('make_form_masks') }} (form uuid, from_state integer)
    returns void language plpgsql as $body$
    declare
        alphabet integer;
        transitions integer[];
    begin
        if exists (
            select from {{ dbt_nn.db_function('form_masks') }} as made
            where made.form_id = form and made.state = from_state
        ) then
            return;
        end if;
        select made.alphabet, made.transitions into alphabet, transitions
        from {{ dbt_nn.db_function('form_automata') }} as made
        where made.form_id = form;
        with recursive
        walk as (
            select
                words.symbols,
                0 as n,
                from_state as state
            from {{ dbt_nn.db_function('form_vocabularies') }} as words
            where words.form_id = form
            union all
            select
                step.symbols,
                step.n,
                step.state
            from (
                select
                    walk.symbols,
                    walk.n + 1 as n,
                    transitions[(walk.state - 1) * alphabet + get_byte(walk.symbols, walk.n)] as state
                from walk
                where walk.n < octet_length(walk.symbols)
            ) as step
            where step.state > 0
        )

        insert into {{ dbt_nn.db_function('form_masks') }} (form_id, state, next_state, token_ids)
        select
            form,
            from_state,
            walk.state,
            array_agg(token_id order by token_id)
        from walk
        inner join {{ dbt_nn.db_function('form_vocabularies') }} as words using (symbols)
        cross join unnest(words.token_ids) as token_id
        where words.form_id = form and walk.n = octet_length(walk.symbols)
        group by walk.state
        order by walk.state
        on conflict do nothing;
    end
    $body$;

    {# The state of a form after an answer's bytes so far; 0 where they are not of it. #}
    create or replace function {{ dbt_nn.db_function('form_state') }} (form uuid, answer bytea)
    returns integer language plpgsql stable parallel safe as $body$
    begin
        return (
            select {{ dbt_nn.db_function('automaton_state') }}(
                made.alphabet, made.symbols, made.transitions, answer
            )
            from {{ dbt_nn.db_function('form_automata') }} as made
            where made.form_id = form
        );
    end
    $body$;

    {#
        The tokens that may come next in a state: those after which the answer can still be
        completed by `remaining` more, and the ones that end it where it may end.
    #}
    create or replace function {{ dbt_nn.db_function('form_tokens') }} (
        form uuid, in_state integer, remaining integer, eos_token_id jsonb
    ) returns integer[] language sql stable parallel safe as $body$
        select array(
            select token_id
            from {{ dbt_nn.db_function('form_masks') }} as mask
            cross join unnest(mask.token_ids) as token_id
            where mask.form_id = form
                and mask.state = in_state
                and automaton.distances[mask.next_state] <= remaining
            union all
            select token_id::integer
            from jsonb_array_elements_text(
                case jsonb_typeof(eos_token_id)
                    when 'array' then eos_token_id
                    else jsonb_build_array(eos_token_id)
                end
            ) as token_id
            where automaton.distances[in_state] = 0
        )
        from {{ dbt_nn.db_function('form_automata') }} as automaton
        where automaton.form_id = form
    $body$;
{%- endmacro %}
