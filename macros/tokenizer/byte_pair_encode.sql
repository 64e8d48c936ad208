{#-
    Texts as tokens: byte pair encoding, as `tokenizers` has it (add_prefix_space=False).

    texts        relation with one row a sequence: (key, text)
    vocabulary   relation: (token_id, token bytea, special)
    merges       relation: (left_id, right_id, rank, token_id)
    config       relation: (parameter, value jsonb), or none for GPT-2's
    -> (key, position from 0, token_id)

    A text is cut at special tokens, normalized, and cut into words. A word begins as
    its bytes (GPT-2, Llama 3, Qwen) or, with byte_token_ids or unk_token_id in config,
    as its characters (Llama 2, Mistral). Every distinct word is encoded once. Up to
    128 of these, a step of the recursion merges one pair of each word; longer words
    go to merge_byte_pairs(), whose setup costs more and each merge less.
-#}
{% macro byte_pair_encode(
    texts, vocabulary, merges, key='sequence_id', text='prompt', config=none
) -%}
with recursive bytes_and_specials as materialized (
    select
        token_id,
        token,
        special
    from {{ vocabulary }}
    where octet_length(token) = 1 or special
),

-- Token ids of the 256 bytes, by byte.
alphabet as materialized (
    select array_agg(bytes_and_specials.token_id order by byte) as byte_ids
    from generate_series(0, 255) as byte
    left join bytes_and_specials
        on
            not bytes_and_specials.special
            and get_byte(bytes_and_specials.token, 0) = byte
),

{{ dbt_nn._segments(texts, 'bytes_and_specials', key, text, config) }},
{% if config %}
settings as materialized (
    {{ dbt_nn._tokenizer_settings(config) | indent(4) }}
),
{% endif %}
pre_tokens as materialized (
    select
        segments.sequence_id,
        segments.segment,
        pre_token.i,
        convert_to(pre_token.content, 'UTF8') as word
    from segments
    {%- if config %}
    cross join settings
    cross join lateral (
        {{ dbt_nn._normalized('segments.content', 'segments.segment', 'settings') | indent(8) }}
    ) as normalized (content)
    cross join lateral {{ dbt_nn.db_function('split_pre_tokens') }}(
        normalized.content, settings.pre_tokenizer
    ) with ordinality as pre_token (content, i)
    {%- else %}
    cross join lateral {{ dbt_nn.db_function('split_pre_tokens') }}(segments.content, 'gpt2')
        with ordinality as pre_token (content, i)
    {%- endif %}
),

distinct_words as materialized (
    select
        row_number() over () as id,
        word
    from (select distinct word from pre_tokens)
),
{% if config %}
-- The words that are tokens, where a tokenizer ignores merges for them.
whole_words as materialized (
    select
        words.word,
        array[vocabulary.token_id] as tokens
    from distinct_words as words
    inner join {{ vocabulary }} as vocabulary on words.word = vocabulary.token
    where (select ignore_merges from settings) and not vocabulary.special
),

letters as materialized (
    select
        words.id,
        letter.i,
        letter.letter collate "C" as letter
    from distinct_words as words
    cross join lateral
        string_to_table(convert_from(words.word, 'UTF8'), null)
            with ordinality as letter (letter, i)
    where (select by_character from settings)
),

{{ dbt_nn._letter_tokens('letters', vocabulary, 'settings') }},
{% endif %}
words as materialized (
    select
        words.word,
        array_remove(
            array(
                select (select byte_ids from alphabet)[get_byte(words.word, i) + 1]
                from generate_series(0, length(words.word) - 1) as i
            ),
            null
        ) as tokens
    from distinct_words as words
    {%- if config %}
    where not (select by_character from settings)
        and not exists (select from whole_words where whole_words.word = words.word)
    union all
    select
        words.word,
        coalesce(spelt.tokens, '{}')
    from distinct_words as words
    left join (
        select
            id,
            array_agg(token_id order by i, n) as tokens
        from letter_tokens
        group by id
    ) as spelt on words.id = spelt.id
    where (select by_character from settings)
        and not exists (select from whole_words where whole_words.word = words.word)
    {%- endif %}
),

merging as (
    select
        word,
        tokens
    from words
    where cardinality(tokens) <= 128
    union all
    select
        merging.word,
        merging.tokens[: best.i - 1]
        || best.token_id
        || merging.tokens[best.i + 2 :] as tokens
    from merging
    cross join lateral (
        select
            pair.i,
            merge.token_id
        from generate_series(1, cardinality(merging.tokens) - 1) as pair (i)
        cross join lateral (
            select
                rank,
                token_id
            from {{ merges }}
            where
                left_id = merging.tokens[pair.i]
                and right_id = merging.tokens[pair.i + 1]
            -- Keeps the planner from hashing all merges for a few pairs.
            offset 0
        ) as merge
        order by merge.rank, pair.i
        limit 1
    ) as best
),

-- Read from sub-selects, which run only when there is a long word.
merge_table as materialized (
    select
        coalesce(
            jsonb_object_agg(left_id || ' ' || right_id, i), '{}'
        ) as rank_of_pair,
        coalesce(array_agg(left_id order by i), '{}') as left_ids,
        coalesce(array_agg(right_id order by i), '{}') as right_ids,
        coalesce(array_agg(token_id order by i), '{}') as merged_ids
    from (
        select
            *,
            row_number() over (order by rank) as i
        from {{ merges }}
    ) as merge
),

encoded_words as materialized (
    (
        select distinct on (word)
            word,
            tokens
        from merging
        order by word, cardinality(tokens)
    )
    union all
    select
        words.word,
        {{ dbt_nn.db_function('merge_byte_pairs') }}(
            words.tokens,
            (select rank_of_pair from merge_table),
            (select left_ids from merge_table),
            (select right_ids from merge_table),
            (select merged_ids from merge_table)
        ) as tokens
    from words
    where cardinality(words.tokens) > 128
    {%- if config %}
    union all
    select
        word,
        tokens
    from whole_words
    {%- endif %}
),

-- Joined by word before unnesting, or a long word is sorted once per token.
encoded as materialized (
    select
        pre_tokens.sequence_id,
        pre_tokens.segment,
        pre_tokens.i,
        encoded_words.tokens
    from pre_tokens
    inner join encoded_words on pre_tokens.word = encoded_words.word
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
