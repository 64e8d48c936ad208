{#-
    Texts as tokens: BERT's WordPiece, as `tokenizers` has it (BertNormalizer,
    BertPreTokenizer, WordPiece), without [CLS] and [SEP] around a text.

    texts        relation with one row a sequence: (key, text)
    vocabulary   relation: (token_id, token bytea, special)
    characters   relation: (first_codepoint, last_codepoint, replacement, isolated)
    config       relation: (parameter, value jsonb)
    -> (key, position from 0, token_id)

    Every distinct word is normalized and encoded once, and every distinct
    character looked up once. A step of the recursion finds one piece of each word.
-#}
{% macro word_piece_encode(
    texts, vocabulary, characters, config, key='sequence_id', text='prompt'
) -%}
with recursive {{ dbt_nn._segments(texts, vocabulary, key, text) }},

limits as materialized (
    select
        {{ dbt_nn.hyperparameter(config, 'unk_token_id') }} as unknown,
        {{ dbt_nn.hyperparameter(config, 'max_input_chars_per_word') }} as characters,
        {{ dbt_nn.hyperparameter(config, 'continuing_subword_prefix', 'jsonb') }}
        #>> '{}' as prefix,
        (
            select max(octet_length(token))
            from {{ vocabulary }}
            where not special
        ) as longest
),

-- Blanks and line ends part words in any case; the other separators come below.
parts as materialized (
    select
        segments.sequence_id,
        segments.segment,
        part.i,
        part.content
    from segments
    cross join lateral
        string_to_table(translate(segments.content, E'\n\r\t', '   '), ' ')
            with ordinality as part (content, i)
    where part.content <> ''
),

-- By number: a row for each of its letters would repeat a long one too often.
contents as materialized (
    select
        row_number() over () as id,
        content
    from (select distinct content from parts)
),

letters as materialized (
    select
        contents.id,
        letter.i,
        letter.letter
    from contents
    cross join lateral
        string_to_table(contents.content, null) with ordinality as letter (letter, i)
),

-- What stands for a character, with blanks where words begin and end.
replacements as materialized (
    select
        letter.letter,
        case
            when known.isolated
                then ' ' || coalesce(known.replacement, letter.letter) || ' '
            else coalesce(known.replacement, letter.letter)
        end as replacement
    from (select distinct letter from letters) as letter
    left join lateral (
        select
            run.last_codepoint,
            run.replacement,
            run.isolated
        from {{ characters }} as run
        where run.first_codepoint <= ascii(letter.letter)
        order by run.first_codepoint desc
        limit 1
    ) as known on known.last_codepoint >= ascii(letter.letter)
),

normalized as materialized (
    select
        letters.id,
        string_agg(replacements.replacement, '' order by letters.i) as words
    from letters
    inner join replacements on letters.letter = replacements.letter
    group by letters.id
),

words as materialized (
    select
        normalized.id,
        word.i,
        word.word
    from normalized
    cross join lateral
        string_to_table(normalized.words, ' ') with ordinality as word (word, i)
    where word.word <> ''
),

-- The longest token that the rest of a word begins with is its next piece.
pieces as (
    select
        word.word,
        1 as start,
        '{}'::integer[] as tokens
    from (select distinct word from words) as word
    cross join limits
    where length(word.word) <= limits.characters
    union all
    select
        pieces.word,
        pieces.start + piece.length as start,
        pieces.tokens || piece.token_id as tokens
    from pieces
    cross join limits
    cross join lateral (
        select
            candidate.length,
            found.token_id
        from
            generate_series(
                1, least(limits.longest, length(pieces.word) - pieces.start + 1)
            ) as candidate (length)
        cross join lateral (
            select token_id
            from {{ vocabulary }}
            where
                token = convert_to(
                    case when pieces.start > 1 then limits.prefix else '' end
                    || substr(pieces.word, pieces.start, candidate.length),
                    'UTF8'
                )
            -- Keeps the planner from hashing the vocabulary for a few pieces.
            offset 0
        ) as found
        order by candidate.length desc
        limit 1
    ) as piece
),

-- A word that pieces don't make up, or too long a one, is unknown.
encoded_words as materialized (
    select
        words.id,
        array_agg(token.token_id order by words.i, token.i) as tokens
    from words
    cross join limits
    left join pieces
        on words.word = pieces.word and length(pieces.word) < pieces.start
    cross join lateral
        unnest(coalesce(pieces.tokens, array[limits.unknown]))
            with ordinality as token (token_id, i)
    group by words.id
),

encoded as materialized (
    select
        parts.sequence_id,
        parts.segment,
        parts.i,
        encoded_words.tokens
    from parts
    inner join contents on parts.content = contents.content
    inner join encoded_words on contents.id = encoded_words.id
    union all
    select
        sequence_id,
        segment,
        0 as i,
        tokens
    from found_specials
)

{{ dbt_nn._numbered_tokens(key) }}
{%- endmacro %}
