{#-
    The database functions of the tokenizer, as statements for an on-run-start
    hook. The lock makes runs that start at once take turns: `create or replace`
    fails with "tuple concurrently updated" where they meet.
-#}
{% macro create_tokenizer_functions() -%}
select pg_advisory_xact_lock(hashtext('dbt_nn.create_tokenizer_functions'));

create schema if not exists {{ adapter.quote(target.schema) }};

{#
    The pieces of a text that are encoded one by one, in their order: by a
    kind of _pre_token_pattern(), or 'none' for the text as it is.
#}
create or replace function {{ dbt_nn.db_function('split_pre_tokens') }} (
    input text, pre_tokenizer text
)
returns setof text
language sql immutable strict parallel safe rows 100
as $body$
    select match[1]
    from
        regexp_matches(
            input collate "C",
            case pre_tokenizer
                {%- for kind in ('gpt2', 'digits', 'llama3', 'qwen2', 'metaspace', 'spaces') %}
                when '{{ kind }}' then $pattern${{ dbt_nn._pre_token_pattern(kind) }}$pattern$
                {%- endfor %}
            end,
            'g'
        ) as match
    union all
    select input
    where pre_tokenizer = 'none' and input <> ''
$body$;

{#
    A text in Unicode's Normalization Form C, as `tokenizers` has it. Characters that
    its version of Unicode does not know it leaves as they are: for it, a text is
    composed on both sides of them.
#}
create or replace function {{ dbt_nn.db_function('compose_characters') }} (input text)
returns text
language sql immutable strict parallel safe
as $body$
    {%- set foreign = dbt_nn._unicode_class('foreign').split() | join %}
    select case
        when input collate "C" ~ '[{{ foreign }}]'
            then (
                select string_agg(coalesce(part.match[1], normalize(part.match[2], nfc)), '' order by part.i)
                from
                    regexp_matches(
                        input collate "C", '([{{ foreign }}]+)|([^{{ foreign }}]+)', 'g'
                    ) with ordinality as part (match, i)
            )
        else normalize(input, nfc)
    end
$body$;

{#
    Byte pair encoding of one long word, in a time that grows as its length. The
    word is a linked list of tokens; the pairs that a merge could join wait in
    one bucket per rank, a list linked from the pair that was put in last.

    tokens         the word's bytes or characters as tokens
    rank_of_pair   {"left_id right_id": rank, …}, ranks from 1 without a gap
    left_ids, right_ids, merged_ids   the merges in the order of their ranks
#}
create or replace function {{ dbt_nn.db_function('merge_byte_pairs') }} (
    tokens integer[],
    rank_of_pair jsonb,
    left_ids integer[],
    right_ids integer[],
    merged_ids integer[]
)
returns integer[]
language plpgsql immutable strict parallel safe
as $body$
declare
    n constant integer := cardinality(tokens);
    following integer[] := array(select generate_series(2, n + 1));
    preceding integer[] := array(select generate_series(0, n - 1));
    changed integer[] := array(select generate_series(1, n));
    bucket integer[] := array_fill(0, array[cardinality(merged_ids)]);
    pair_start integer[] := '{}';
    pair_next integer[] := '{}';
    pairs integer := 0;
    pair integer;
    start integer;
    starts integer[];
    stop integer;
    rank integer := 1;
    new_rank integer;
begin
    loop
        foreach start in array changed loop
            stop := following[start];
            new_rank := rank_of_pair -> (tokens[start] || ' ' || tokens[stop]);
            if new_rank is not null then
                pairs := pairs + 1;
                pair_start[pairs] := start;
                pair_next[pairs] := bucket[new_rank];
                bucket[new_rank] := pairs;
                rank := least(rank, new_rank);
            end if;
        end loop;

        while bucket[rank] = 0 loop
            rank := rank + 1;
        end loop;
        exit when rank > cardinality(merged_ids);

        starts := '{}';
        pair := bucket[rank];
        while pair > 0 loop
            starts := starts || pair_start[pair];
            pair := pair_next[pair];
        end loop;
        bucket[rank] := 0;

        -- From left to right, so that "aaa" turns into "aa", "a".
        changed := '{}';
        for start in select unnest(starts) order by 1 loop
            stop := following[start];
            -- An earlier merge may have taken one of the two.
            continue when
                tokens[start] is distinct from left_ids[rank]
                or tokens[stop] is distinct from right_ids[rank];
            tokens[start] := merged_ids[rank];
            tokens[stop] := null;
            following[start] := following[stop];
            if following[stop] <= n then
                preceding[following[stop]] := start;
            end if;
            changed := changed || preceding[start] || start;
        end loop;
    end loop;

    return array_remove(tokens, null);
end
$body$;

{#
    A text after the steps of a tokenizer.json's normalizer that follow its Precompiled:
    Replace of several blanks, and Strip.
#}
create or replace function {{ dbt_nn.db_function('apply_normalizers') }} (
    input text, steps jsonb
)
returns text
language plpgsql immutable strict parallel safe
as $body$
declare
    {%- set space = dbt_nn._unicode_class('space').split() | join %}
    step jsonb;
begin
    for step in select value from jsonb_array_elements(steps) loop
        if step ->> 'type' = 'Replace' then
            input := regexp_replace(input collate "C", ' {2,}', step ->> 'content', 'g');
        end if;
        if step ->> 'strip_left' = 'true' then
            input := regexp_replace(input collate "C", '^[{{ space }}]+', '');
        end if;
        if step ->> 'strip_right' = 'true' then
            input := regexp_replace(input collate "C", '[{{ space }}]+$', '');
        end if;
    end loop;
    return input;
end
$body$;

{#
    The pieces of a word with the highest sum of scores, as `tokenizers` finds them
    (models/unigram/model.rs, encode_optimized): of equal sums, the longest last piece.

    starts, lengths     of the pieces that the word has, in their order; places from 1
    scores, token_ids   of these
    unknown             the token of a run of characters that are no piece, each with
                        unknown_score
    byte_token_ids      those of the bytes 0 to 255 that stand for it instead, or none
#}
create or replace function {{ dbt_nn.db_function('best_pieces') }} (
    word text,
    starts integer[],
    lengths integer[],
    scores double precision[],
    token_ids integer[],
    unknown integer,
    unknown_score double precision,
    byte_token_ids integer[]
)
returns integer[]
language plpgsql immutable strict parallel safe
as $body$
declare
    n constant integer := length(word);
    pieces constant integer := cardinality(starts);
    -- of the best path to each place: its score, last piece and where that begins
    best double precision[] := array_fill(0, array[n + 1])::double precision[];
    came_from integer[] := array_fill(0, array[n + 1]);
    last_token integer[] := array_fill(0, array[n + 1]);
    first_piece integer[] := array_fill(0, array[n]);
    piece integer := 1;
    stop integer;
    score double precision;
    is_known boolean;
    run_end integer := 0;
    bytes bytea;
    found integer[] := '{}';
    tokens integer := 0;
begin
    for start in 1..n loop
        is_known := false;
        first_piece[start] := piece;
        while piece <= pieces and starts[piece] = start loop
            stop := start + lengths[piece];
            score := scores[piece] + best[start];
            if came_from[stop] = 0 or score > best[stop] then
                best[stop] := score;
                came_from[stop] := start;
                last_token[stop] := token_ids[piece];
            end if;
            is_known := is_known or lengths[piece] = 1;
            piece := piece + 1;
        end loop;
        if not is_known then
            stop := start + 1;
            score := unknown_score + best[start];
            if came_from[stop] = 0 or score > best[stop] then
                best[stop] := score;
                came_from[stop] := start;
                last_token[stop] := unknown;
            end if;
        end if;
    end loop;

    -- From the end to the beginning, and a run of unknown characters at once.
    stop := n + 1;
    while stop > 1 loop
        if last_token[stop] = unknown then
            run_end := greatest(run_end, stop);
            if came_from[stop] = 1 or last_token[came_from[stop]] <> unknown then
                -- Such a run may be a piece as a whole, which `tokenizers` takes then.
                piece := first_piece[came_from[stop]];
                while piece <= pieces
                    and starts[piece] = came_from[stop]
                    and lengths[piece] < run_end - came_from[stop]
                loop
                    piece := piece + 1;
                end loop;
                if piece <= pieces
                    and starts[piece] = came_from[stop]
                    and lengths[piece] = run_end - came_from[stop]
                then
                    tokens := tokens + 1;
                    found[tokens] := token_ids[piece];
                elsif cardinality(byte_token_ids) > 0 then
                    bytes := convert_to(
                        substr(word, came_from[stop], run_end - came_from[stop]), 'UTF8'
                    );
                    for i in reverse length(bytes) - 1..0 loop
                        tokens := tokens + 1;
                        found[tokens] := byte_token_ids[get_byte(bytes, i) + 1];
                    end loop;
                else
                    tokens := tokens + 1;
                    found[tokens] := unknown;
                end if;
                run_end := 0;
            end if;
        else
            tokens := tokens + 1;
            found[tokens] := last_token[stop];
        end if;
        stop := came_from[stop];
    end loop;

    return array(select found[i] from generate_series(tokens, 1, -1) as i);
end
$body$;

{#
    Bytes as text. Every maximal part of an ill-formed sequence turns into one
    U+FFFD, as in Python's and the WHATWG's decoders; so does U+0000, which no
    Postgres text can hold. The bytes pass as Latin-1, one character each: so a
    regular expression can tell well-formed from ill-formed.
#}
create or replace function {{ dbt_nn.db_function('decode_utf8') }} (bytes bytea)
returns text
language sql immutable strict parallel safe
as $body$
    select
        coalesce(
            string_agg(
                case
                    when part.match[1] is null then U&'\FFFD'
                    else convert_from(
                        convert_to(part.match[1], 'LATIN1'), 'UTF8'
                    )
                end,
                '' order by part.i
            ),
            ''
        )
    from
        regexp_matches(
            convert_from(
                case
                    when position('\x00'::bytea in bytes) = 0 then bytes
                    else (
                        select string_agg(
                            case
                                when get_byte(bytes, i) = 0 then '\xff'
                                else substr(bytes, i + 1, 1)
                            end,
                            '' order by i
                        )
                        from generate_series(0, length(bytes) - 1) as i
                    )
                end,
                'LATIN1'
            ) collate "C",
            $pattern$(?x)
                ((?:
                    [\u0001-\u007F]
                    | [\u00C2-\u00DF][\u0080-\u00BF]
                    | \u00E0[\u00A0-\u00BF][\u0080-\u00BF]
                    | [\u00E1-\u00EC\u00EE\u00EF][\u0080-\u00BF]{2}
                    | \u00ED[\u0080-\u009F][\u0080-\u00BF]
                    | \u00F0[\u0090-\u00BF][\u0080-\u00BF]{2}
                    | [\u00F1-\u00F3][\u0080-\u00BF]{3}
                    | \u00F4[\u0080-\u008F][\u0080-\u00BF]{2}
                )+)
                | [\u0080-\u00FF]
                | \u00E0[\u00A0-\u00BF]
                | [\u00E1-\u00EC\u00EE\u00EF][\u0080-\u00BF]
                | \u00ED[\u0080-\u009F]
                | \u00F0[\u0090-\u00BF][\u0080-\u00BF]?
                | [\u00F1-\u00F3][\u0080-\u00BF]{1,2}
                | \u00F4[\u0080-\u008F][\u0080-\u00BF]?
            $pattern$,
            'g'
        ) with ordinality as part (match, i)
$body$;

{# The bytes up to a last character that more bytes could still complete. #}
create or replace function {{ dbt_nn.db_function('complete_utf8') }} (bytes bytea)
returns bytea
language sql immutable strict parallel safe
as $body$
    select
        substr(
            bytes,
            1,
            length(bytes) - coalesce(
                length(
                    substring(
                        encode(
                            substr(bytes, greatest(length(bytes) - 2, 1)), 'hex'
                        ) collate "C"
                        from $pattern$(?x)
                            ^(?:..)*?(
                                c[2-9a-f] | d. | e. | f[0-4]
                                | e0[ab].
                                | e[1-9a-cef][89ab].
                                | ed[89].
                                | f0[9ab].([89ab].)?
                                | f[1-3][89ab].([89ab].)?
                                | f48.([89ab].)?
                            )$
                        $pattern$
                    )
                ) / 2,
                0
            )
        )
$body$;
{%- endmacro %}
