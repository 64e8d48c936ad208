{#-
    The database functions that make an automaton of a regular expression: of each state
    and each byte the next state. Tokens are bytes, and may begin and end within a
    character.

    Three steps, each from its own source: positions and what follows each (Glushkov 1961,
    "The abstract theory of automata"), sets of positions as states (Rabin and Scott 1959,
    "Finite automata and their decision problems"), and characters as ranges of bytes
    (the crate utf8-ranges, after Russ Cox).
-#}
{% macro create_automaton_functions() -%}
    {#
        Characters as bytes: (bytes), each as 'c3-c3 a0-bf', a range of each byte.
        Together they are the UTF-8 of low … high.
    #}
    create or replace function {{ dbt_nn.db_function('utf8_ranges') }} (low integer, high integer)
    returns setof text language plpgsql immutable strict parallel safe as $body$
    declare
        waiting int4range[] := array[int4range(low, high, '[]')];
        one int4range;
        a integer;
        b integer;
        cut integer;  -- the first of the upper part
    begin
        while cardinality(waiting) > 0 loop
            one := waiting[cardinality(waiting)];
            waiting := trim_array(waiting, 1);
            a := lower(one);
            b := upper(one) - 1;
            cut := (
                select min(edge)
                from unnest(array[128, 2048, 65536]) as edge
                where a < edge and edge <= b
            );
            {# so that all bytes after the first one that differs are free #}
            for i in 1..case when b < 128 then 0 when b < 2048 then 1 when b < 65536 then 2 else 3 end loop
                exit when cut is not null;
                if a >> (6 * i) <> b >> (6 * i) then
                    if a & ((1 << (6 * i)) - 1) <> 0 then
                        cut := (a | ((1 << (6 * i)) - 1)) + 1;
                    elsif b & ((1 << (6 * i)) - 1) <> (1 << (6 * i)) - 1 then
                        cut := b & ~((1 << (6 * i)) - 1);
                    end if;
                end if;
            end loop;
            if cut is not null then
                waiting := waiting || int4range(cut, b, '[]') || int4range(a, cut);
                continue;
            end if;
            return next (
                select string_agg(
                    format(
                        '%s-%s',
                        encode(substr(bytes.a, i, 1), 'hex'),
                        encode(substr(bytes.b, i, 1), 'hex')
                    ),
                    ' ' order by i
                )
                from (
                    select convert_to(chr(a), 'UTF8') as a, convert_to(chr(b), 'UTF8') as b
                ) as bytes
                cross join generate_series(1, octet_length(bytes.a)) as i
            );
        end loop;
    end
    $body$;

    {#
        The automaton of a regular expression.

        states        how many there are; the first is 1
        symbols       256 bytes: what the automaton sees of each byte, from 1
        alphabet      how many symbols there are
        transitions   the next state of state s and symbol a, at (s - 1) * alphabet + a;
                      0 where there is none
        is_accepting  of each state: whether an answer may end there
    #}
    create or replace function {{ dbt_nn.db_function('regex_automaton') }} (
        regex text,
        out states integer,
        out symbols bytea,
        out alphabet integer,
        out transitions integer[],
        out is_accepting boolean[]
    ) language plpgsql immutable strict parallel safe as $body$
    declare
        most constant integer := 10000;  -- positions, states
        item text;
        classes text[] := '{}';  -- of each position
        {# of the operands on the stack #}
        firsts text[] := '{}';
        lasts text[] := '{}';
        nullable boolean[] := '{}';
        top integer := 0;
        follow_from integer[] := '{}';
        follow_to integer[] := '{}';
        follow_start integer[];  -- where each position's followers begin; position 0 is the start
        class_of integer[];  -- of each position
        class_groups text[];  -- of each class the groups of characters that it has
        group_ranges text[];  -- of each group its bytes, see utf8_ranges()
        sets text[];  -- of each state its positions
        set integer[];
        found record;
        target integer;
        edge_from integer[] := '{}';
        edge_group integer[] := '{}';
        edge_to integer[] := '{}';
        n_sets integer;
        tails text[] := '{}';  -- of the states within a character what is left of it
        edge_start integer[] := '{}';
        byte_from integer[] := '{}';
        byte_low integer[] := '{}';
        byte_high integer[] := '{}';
        byte_to integer[] := '{}';
        state integer := 0;
    begin
        {# 1. Positions, and what follows each. #}
        foreach item in array {{ dbt_nn.db_function('regex_postfix') }}(regex) loop
            if item = 'empty' then
                top := top + 1;
                firsts[top] := '{}';
                lasts[top] := '{}';
                nullable[top] := true;
            elsif item = 'alternate' then
                top := top - 1;
                firsts[top] := (firsts[top]::integer[] || firsts[top + 1]::integer[])::text;
                lasts[top] := (lasts[top]::integer[] || lasts[top + 1]::integer[])::text;
                nullable[top] := nullable[top] or nullable[top + 1];
            elsif item = 'concat' then
                top := top - 1;
                follow_from := follow_from || array(
                    select a from unnest(lasts[top]::integer[]) as a
                    cross join unnest(firsts[top + 1]::integer[]) as b
                );
                follow_to := follow_to || array(
                    select b from unnest(lasts[top]::integer[]) as a
                    cross join unnest(firsts[top + 1]::integer[]) as b
                );
                if nullable[top] then
                    firsts[top] := (firsts[top]::integer[] || firsts[top + 1]::integer[])::text;
                end if;
                lasts[top] := case
                    when nullable[top + 1]
                        then (lasts[top]::integer[] || lasts[top + 1]::integer[])::text
                    else lasts[top + 1]
                end;
                nullable[top] := nullable[top] and nullable[top + 1];
            elsif item in ('star', 'plus', 'optional') then
                if item <> 'optional' then
                    follow_from := follow_from || array(
                        select a from unnest(lasts[top]::integer[]) as a
                        cross join unnest(firsts[top]::integer[]) as b
                    );
                    follow_to := follow_to || array(
                        select b from unnest(lasts[top]::integer[]) as a
                        cross join unnest(firsts[top]::integer[]) as b
                    );
                end if;
                nullable[top] := nullable[top] or item <> 'plus';
            else
                classes := classes || item;
                top := top + 1;
                firsts[top] := '{' || cardinality(classes) || '}';
                lasts[top] := firsts[top];
                nullable[top] := false;
            end if;
            if cardinality(classes) > most or cardinality(follow_from) > 50 * most then
                raise program_limit_exceeded using message = 'it is too large';
            end if;
        end loop;
        {# the start is followed by what is first #}
        select
            array_agg(edge.b order by edge.a, edge.b),
            array_agg(edge.a order by edge.a, edge.b)
        into follow_to, follow_from
        from (
            select distinct a, b from unnest(follow_from, follow_to) as edge (a, b)
            union all
            select distinct 0, b from unnest(firsts[1]::integer[]) as b
        ) as edge;
        follow_to := coalesce(follow_to, '{}');
        follow_start := array(
            select 1 + coalesce(sum(edge.n) over (order by position rows unbounded preceding), 0)
            - coalesce(edge.n, 0)
            from generate_series(0, cardinality(classes)) as position
            left join (
                select a, count(*) as n from unnest(follow_from) as a group by a
            ) as edge on edge.a = position
            order by position
        ) || cardinality(follow_to) + 1;

        {# 2. Characters that all classes treat alike are a group. #}
        select
            array_agg(class.number order by class.position)
        into class_of
        from (
            select position, dense_rank() over (order by class) as number
            from unnest(classes) with ordinality as class (class, position)
        ) as class;
        with
        ranges as materialized (
            select
                class.number,
                lower(part) as low,
                upper(part) as high
            from (
                select class, dense_rank() over (order by class) as number
                from (select distinct class from unnest(classes) as class) as class
            ) as class
            cross join unnest(class.class::int4multirange) as part
        ),

        pieces as (
            select
                edge.low,
                lead(edge.low) over (order by edge.low) as high
            from (select low from ranges union select high from ranges) as edge
        ),

        signed as (
            select
                pieces.low,
                pieces.high,
                array_agg(ranges.number order by ranges.number) as signature
            from pieces
            inner join ranges on pieces.low >= ranges.low and pieces.high <= ranges.high
            group by pieces.low, pieces.high
        ),

        numbered as materialized (
            select
                signature,
                range_agg(int4range(low, high)) as characters,
                row_number() over (order by min(low)) as number
            from signed
            group by signature
        )

        select
            (
                select array_agg(class.groups order by class.number)
                from (
                    select
                        member.number,
                        array_agg(numbered.number)::text as groups
                    from numbered
                    cross join unnest(numbered.signature) as member (number)
                    group by member.number
                ) as class
            ),
            (
                select array_agg(
                    (
                        select string_agg(bytes.range, ',')
                        from unnest(numbered.characters) as part
                        cross join {{ dbt_nn.db_function('utf8_ranges') }}(
                            lower(part), upper(part) - 1
                        ) as bytes (range)
                    )
                    order by numbered.number
                )
                from numbered
            )
        into class_groups, group_ranges;

        {# 3. A state is the set of positions that the text so far may end at. #}
        sets := array['{0}'];
        while state < cardinality(sets) loop
            state := state + 1;
            set := sets[state]::integer[];
            edge_start := edge_start || cardinality(edge_from) + 1;
            is_accepting[state] := set && lasts[1]::integer[] or nullable[1] and set = '{0}';
            for found in
                select
                    member.number,
                    array_agg(distinct follower order by follower)::text as set
                from unnest(set) as position
                cross join unnest(
                    follow_to[follow_start[position + 1]:follow_start[position + 2] - 1]
                ) as follower
                cross join unnest(class_groups[class_of[follower]]::integer[]) as member (number)
                group by member.number
            loop
                target := array_position(sets, found.set);
                if target is null then
                    sets := sets || found.set;
                    target := cardinality(sets);
                end if;
                edge_from := edge_from || state;
                edge_group := edge_group || found.number::integer;
                edge_to := edge_to || target;
            end loop;
            if state > most then
                raise program_limit_exceeded using message = 'it has too many states';
            end if;
        end loop;
        n_sets := cardinality(sets);

        {# 4. A state within a character is what is left of it, and where that leads. #}
        edge_start := edge_start || cardinality(edge_from) + 1;
        state := 0;
        while state < n_sets + cardinality(tails) loop
            state := state + 1;
            for found in
                select
                    part.head,
                    min(part.target) filter (where part.tail = '') as target,
                    string_agg(
                        part.tail || '>' || part.target, ',' order by part.tail, part.target
                    ) filter (where part.tail <> '') as tails
                from (
                    select
                        left(range, 5) as head,
                        substr(range, 7) as tail,
                        edge_to[i] as target
                    from generate_series(edge_start[state], edge_start[state + 1] - 1) as i
                    cross join string_to_table(group_ranges[edge_group[i]], ',') as range
                    where state <= n_sets
                    union all
                    select
                        left(tail, 5),
                        substr(split_part(tail, '>', 1), 7),
                        split_part(tail, '>', 2)::integer
                    from string_to_table(tails[state - n_sets], ',') as tail
                    where state > n_sets
                ) as part
                group by part.head
            loop
                target := found.target;
                if found.tails is not null then
                    target := array_position(tails, found.tails);
                    if target is null then
                        tails := tails || found.tails;
                        target := cardinality(tails);
                    end if;
                    target := n_sets + target;
                end if;
                byte_from := byte_from || state;
                byte_low := byte_low || ('x' || left(found.head, 2))::bit(8)::integer;
                byte_high := byte_high || ('x' || right(found.head, 2))::bit(8)::integer;
                byte_to := byte_to || target;
            end loop;
        end loop;
        states := state;
        is_accepting := is_accepting || array_fill(false, array[states - n_sets]);

        {# 5. Bytes that all states treat alike are a symbol. #}
        with
        edges as materialized (
            select edge.*
            from unnest(byte_from, byte_low, byte_high, byte_to)
                as edge (state, low, high, target)
        ),

        bytes as (
            select
                byte,
                string_agg(edges.state || '>' || edges.target, ',' order by edges.state) as signature
            from generate_series(0, 255) as byte
            left join edges on byte between edges.low and edges.high
            group by byte
        ),

        numbered as materialized (
            select
                byte,
                dense_rank() over (order by signature nulls first) as symbol
            from bytes
        ),

        alike as (
            select
                symbol,
                min(byte) as byte
            from numbered
            group by symbol
        )

        select
            (
                select string_agg(set_byte('\x00', 0, symbol::integer), '' order by byte)
                from numbered
            ),
            (select count(*) from alike),
            (
                select array_agg(coalesce(edges.target, 0) order by one.number, alike.symbol)
                from generate_series(1, states) as one (number)
                cross join alike
                left join edges
                    on edges.state = one.number and alike.byte between edges.low and edges.high
            )
        into symbols, alphabet, transitions;
    end
    $body$;

    {#
        Of each state how many bytes an answer still needs at least, by way of the symbols
        that are available as bytes; NULL where it can't be completed so.
    #}
    create or replace function {{ dbt_nn.db_function('automaton_distances') }} (
        alphabet integer, transitions integer[], is_accepting boolean[], available integer[]
    ) returns integer[] language plpgsql immutable strict parallel safe as $body$
    declare
        distances integer[] := array(
            select case when ends then 0 end
            from unnest(is_accepting) with ordinality as state (ends, i)
            order by i
        );
        reached integer[] := array_positions(is_accepting, true);
        sources integer[];
        targets integer[];
        n integer := 0;
        state integer;
    begin
        select array_agg(edge.state), array_agg(edge.target)
        into sources, targets
        from (
            select distinct
                ((i - 1) / alphabet + 1)::integer as state,
                target
            from unnest(transitions) with ordinality as transition (target, i)
            where target > 0 and (i - 1) % alphabet + 1 = any(available)
        ) as edge;
        while cardinality(reached) > 0 loop
            n := n + 1;
            reached := array(
                select distinct edge.state
                from unnest(sources, targets) as edge (state, target)
                inner join unnest(reached) as earlier on edge.target = earlier
                where distances[edge.state] is null
            );
            foreach state in array reached loop
                distances[state] := n;
            end loop;
        end loop;
        return distances;
    end
    $body$;

    {# The state of an automaton after a text's bytes; 0 where no answer begins so. #}
    create or replace function {{ dbt_nn.db_function('automaton_state') }} (
        alphabet integer, symbols bytea, transitions integer[], answer bytea
    ) returns integer language plpgsql immutable strict parallel safe as $body$
    declare
        state integer := 1;
    begin
        for i in 0..octet_length(answer) - 1 loop
            exit when state = 0;
            state := transitions[
                (state - 1) * alphabet + get_byte(symbols, get_byte(answer, i))
            ];
        end loop;
        return state;
    end
    $body$;
{%- endmacro %}
