{#-
    Texts as tokens: SentencePiece's Unigram, as `tokenizers` has it (Precompiled,
    WhitespaceSplit, Metaspace, Unigram), without <s> and </s> around a text.

    texts         relation with one row a sequence: (key, text)
    vocabulary    relation: (token_id, token bytea, special, score)
    replacements  relation: (source, replacement), of the normalizer
    config        relation: (parameter, value jsonb)
    -> (key, position from 0, token_id)

    Every distinct part of a text between blanks is normalized once, and every distinct
    word parted into pieces once: the index finds the pieces of a word that begin at
    each of its characters, and best_pieces() the path of the highest score.
-#}
{% macro unigram_encode(
    texts, vocabulary, replacements, config, key='sequence_id', text='prompt'
) -%}
{%- set space = dbt_nn._unicode_class('space').split() | join -%}
with {{ dbt_nn._segments(texts, vocabulary, key, text, config, 'not ' ~ dbt_nn._is_normalized(config)) }},

limits as materialized (
    {{ dbt_nn._unigram_settings(config) | indent(4) }}
),

-- A grapheme cluster never goes on over a blank that has no replacement.
parts as materialized (
    select
        segments.sequence_id,
        segments.segment,
        part.i,
        case when part.i > 1 then ' ' else '' end || part.content as content
    from segments
    cross join lateral
        string_to_table(segments.content, ' ') with ordinality as part (content, i)
),

contents as materialized (
    select
        row_number() over () as id,
        content
    from (select distinct content from parts)
),

-- Most texts have clusters of one character.
clusters as materialized (
    select
        contents.id,
        cluster.i,
        cluster.cluster collate "C" as cluster
    from contents
    cross join lateral
        string_to_table(contents.content, null) with ordinality as cluster (cluster, i)
    where contents.content !~ '[\r{{ dbt_nn._cluster_class() }}]'
    union all
    select
        contents.id,
        cluster.i,
        cluster.match[1]
    from contents
    cross join lateral
        regexp_matches(
            contents.content collate "C", $pattern${{ dbt_nn._cluster_pattern() }}$pattern$, 'g'
        ) with ordinality as cluster (match, i)
    where contents.content ~ '[\r{{ dbt_nn._cluster_class() }}]'
),

replaced_clusters as materialized (
    select
        cluster.cluster,
        coalesce(
            -- The shortest text that it begins with stands for all of it.
            (
                select known.replacement
                from
                    generate_series(
                        1,
                        case when octet_length(cluster.cluster) < 6
                            then length(cluster.cluster) else 0
                        end
                    ) as n
                inner join {{ replacements }} as known
                    on left(cluster.cluster, n) collate "C" = known.source
                order by n
                limit 1
            ),
            (
                select string_agg(coalesce(known.replacement, letter.letter), '' order by letter.i)
                from
                    string_to_table(cluster.cluster, null)
                        with ordinality as letter (letter, i)
                left join {{ replacements }} as known
                    on letter.letter collate "C" = known.source
            )
        ) as replacement
    from (select distinct cluster from clusters) as cluster
),

normal_contents as materialized (
    select
        contents.content,
        coalesce(normal.content, '') as normal
    from contents
    left join (
        select
            clusters.id,
            string_agg(replaced_clusters.replacement, '' order by clusters.i) as content
        from clusters
        inner join replaced_clusters on clusters.cluster = replaced_clusters.cluster
        group by clusters.id
    ) as normal on contents.id = normal.id
),

normal_texts as materialized (
    select
        row_number() over () as id,
        parts.sequence_id,
        parts.segment,
        {{ dbt_nn.db_function('apply_normalizers') }}(
            string_agg(normal_contents.normal, '' order by parts.i),
            (select normalizers from limits)
        ) as content
    from parts
    inner join normal_contents on parts.content = normal_contents.content
    group by parts.sequence_id, parts.segment
),

-- Special tokens that are found in what is normalized.
{{ dbt_nn._segments(
    'normal_texts', vocabulary, 'id', 'content', config,
    dbt_nn._is_normalized(config), 'normal_'
) }},

words as materialized (
    select
        part.sequence_id as id,
        part.segment,
        piece.i as piece,
        word.i,
        word.match[1] collate "C" as word
    from normal_segments as part
    cross join limits
    cross join lateral (
        select
            piece.i,
            case
                when limits.prepend_scheme = 'always' and piece.content !~ '^[ \u2581]' then U&'\2581'
                else ''
            end || replace(piece.content, ' ', U&'\2581') as content
        from
            regexp_split_to_table(
                part.content collate "C",
                case when limits.pre_tokenizer = 'whitespace' then '[{{ space }}]+' else '.\A' end
            ) with ordinality as piece (content, i)
        where piece.content <> ''
    ) as piece
    cross join lateral
        regexp_matches(
            piece.content collate "C",
            case when limits.pre_tokenizer = 'none' then '(.+)' else '(\u2581[^\u2581]*|[^\u2581]+)' end,
            'g'
        ) with ordinality as word (match, i)
),

distinct_words as materialized (
    select
        row_number() over () as id,
        word,
        length(word) as length
    from (select distinct word from words)
),

-- A long word in blocks: finding the place of a character takes a time as its place.
blocks as materialized (
    select
        words.id,
        block.start,
        substr(words.word, block.start + 1, 255 + limits.longest) as content,
        least(words.length - block.start, 256) as starts,
        words.length - block.start as rest
    from distinct_words as words
    cross join limits
    cross join lateral
        generate_series(0, words.length - 1, 256) as block (start)
),

pieces as materialized (
    select
        blocks.id,
        array_agg(blocks.start + place.start order by blocks.start + place.start, piece.length) as starts,
        array_agg(piece.length order by blocks.start + place.start, piece.length) as lengths,
        array_agg(found.score order by blocks.start + place.start, piece.length) as scores,
        array_agg(found.token_id order by blocks.start + place.start, piece.length) as token_ids
    from blocks
    cross join limits
    cross join lateral generate_series(1, blocks.starts) as place (start)
    cross join lateral
        generate_series(1, least(limits.longest, blocks.rest - place.start + 1)) as piece (length)
    cross join lateral (
        select
            token_id,
            score
        from {{ vocabulary }}
        where token = convert_to(substr(blocks.content, place.start, piece.length), 'UTF8')
            and score is not null
        -- Keeps the planner from hashing the vocabulary for a few pieces.
        offset 0
    ) as found
    group by blocks.id
),

encoded_words as materialized (
    select
        words.word,
        {{ dbt_nn.db_function('best_pieces') }}(
            words.word,
            coalesce(pieces.starts, '{}'),
            coalesce(pieces.lengths, '{}'),
            coalesce(pieces.scores, '{}'),
            coalesce(pieces.token_ids, '{}'),
            limits.unknown,
            limits.unknown_score,
            limits.byte_token_ids
        ) as tokens
    from distinct_words as words
    cross join limits
    left join pieces on words.id = pieces.id
),

encoded as materialized (
    select
        normal_texts.sequence_id,
        array[normal_texts.segment, words.segment, words.piece] as segment,
        words.i,
        encoded_words.tokens
    from words
    inner join normal_texts on words.id = normal_texts.id
    inner join encoded_words on words.word = encoded_words.word
    union all
    select
        normal_texts.sequence_id,
        array[normal_texts.segment, special.segment, 0] as segment,
        0 as i,
        special.tokens
    from normal_found_specials as special
    inner join normal_texts on special.sequence_id = normal_texts.id
    union all
    select
        sequence_id,
        array[segment, 0, 0] as segment,
        0 as i,
        tokens
    from found_specials
)

{{ dbt_nn._numbered_tokens(key) }}
{%- endmacro %}


{#- What config says of a Unigram, as one row: a SELECT. See docs/checkpoints.md. -#}
{% macro _unigram_settings(config) -%}
select
    {{ dbt_nn.hyperparameter(config, 'unk_token_id') }} as unknown,
    {{ dbt_nn.hyperparameter(config, 'unknown_score', 'double precision') }} as unknown_score,
    {{ dbt_nn.hyperparameter(config, 'longest_piece') }} as longest,
    {{ dbt_nn.hyperparameter(config, 'pre_tokenizer', 'text') }} as pre_tokenizer,
    {{ dbt_nn.hyperparameter(config, 'prepend_scheme', 'text') }} as prepend_scheme,
    coalesce(
        {{ dbt_nn.hyperparameter(config, 'normalizers', 'jsonb') }}, '[]'
    ) as normalizers,
    array(
        select id::integer
        from jsonb_array_elements_text(
            {{ dbt_nn.hyperparameter(config, 'byte_token_ids', 'jsonb') }}
        ) with ordinality as byte (id, i)
        order by byte.i
    ) as byte_token_ids
{%- endmacro %}


{#- Whether a special token is looked for in normalized texts: a condition. -#}
{% macro _is_normalized(config) -%}
coalesce({{ dbt_nn.hyperparameter(config, 'normalized_token_ids', 'jsonb') }} @> to_jsonb(token_id), false)
{%- endmacro %}


{#- The characters that make clusters of several, inside a bracket expression. -#}
{% macro _cluster_class() -%}
{%- for name in ('extending', 'spacing', 'prepended') %}
{{- dbt_nn._unicode_class(name).split() | join }}
{%- endfor %}
{%- endmacro %}


{#-
    A regular expression of the grapheme clusters of up to 5 bytes; of longer ones it
    may match parts of 6 bytes or more, such as the syllables of Hangul.
    Unicode Standard Annex 29, with the rules GB3 to GB5, GB9 to GB9c and GB11.
-#}
{% macro _cluster_pattern() -%}
{%- set class = {} -%}
{%- for name in ('extending', 'spacing', 'prepended', 'control', 'pictograph', 'consonant', 'linker') -%}
    {%- do class.update({name: dbt_nn._unicode_class(name).split() | join}) -%}
{%- endfor -%}
{%- set any = '[' ~ class.extending ~ class.spacing ~ ']*' -%}
{%- set extending = '[' ~ class.extending ~ ']*' -%}
(\r\n|[{{ class.prepended }}]*(?:[{{ class.pictograph }}](?:{{ any }}\u200D[{{ class.pictograph }}])*
{{- '' }}|[{{ class.consonant }}](?:{{ extending }}[{{ class.linker }}]{{ extending }}[{{ class.consonant }}])*
{{- '' }}|[^{{ class.control }}]){{ any }}|[{{ class.control }}])
{%- endmacro %}
