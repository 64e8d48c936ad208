{#-
    What config says of a byte pair encoding, as one row: a SELECT.

    pre_tokenizer   a kind of _pre_token_pattern(), or 'none'
    normalizer      'nfc', or none
    prepend_scheme  of a tokenizer that writes blanks as U+2581, as SentencePiece's:
                    'every' text gets one more (the normalizer Prepend), or if it begins
                    with none (Metaspace) 'always', the 'first' or 'never'
    byte_token_ids  the tokens of the bytes 0 to 255, of what has no other token
    unk_token_id    or the one token for it; fuse_unk: one for several in a row
    ignore_merges   whether a word that is a token is that token
    by_character    whether words begin as their characters
-#}
{% macro _tokenizer_settings(config) -%}
select
    pre_tokenizer,
    normalizer,
    prepend_scheme,
    byte_token_ids,
    unk_token_id,
    fuse_unk,
    ignore_merges,
    prepend_scheme is not null as by_character
from (
    select
        coalesce({{ dbt_nn.hyperparameter(config, 'pre_tokenizer', 'text') }}, 'gpt2')
        as pre_tokenizer,
        {{ dbt_nn.hyperparameter(config, 'normalizer', 'text') }} as normalizer,
        {{ dbt_nn.hyperparameter(config, 'prepend_scheme', 'text') }} as prepend_scheme,
        (
            select array_agg(id::integer order by i)
            from jsonb_array_elements_text(
                {{ dbt_nn.hyperparameter(config, 'byte_token_ids', 'jsonb') }}
            ) with ordinality as byte (id, i)
        ) as byte_token_ids,
        {{ dbt_nn.hyperparameter(config, 'unk_token_id') }} as unk_token_id,
        coalesce({{ dbt_nn.hyperparameter(config, 'fuse_unk', 'boolean') }}, false)
        as fuse_unk,
        coalesce({{ dbt_nn.hyperparameter(config, 'ignore_merges', 'boolean') }}, false)
        as ignore_merges
) as said
{%- endmacro %}


{#-
    A segment's text as the tokenizer's normalizer makes it, a SELECT of one text.
    Tokens have blanks for U+2581, so that texts get these, too.
-#}
{% macro _normalized(content, segment, settings) -%}
select case
    when {{ settings }}.normalizer = 'nfc'
        then {{ dbt_nn.db_function('compose_characters') }}({{ content }})
    when {{ settings }}.prepend_scheme is null or {{ content }} = ''
        then {{ content }}
    else case
        when {{ settings }}.prepend_scheme = 'every'
            or {{ content }} !~ U&'^[ \2581]' and (
                {{ settings }}.prepend_scheme = 'always'
                {#- a text's first segment, see _segments() #}
                or {{ settings }}.prepend_scheme = 'first' and {{ segment }} <= 2
            )
            then ' '
        else ''
    end || replace({{ content }}, U&'\2581', ' ')
end
{%- endmacro %}


{#-
    The common table expression `letter_tokens` (id, i, n, token_id): the tokens that
    words begin as, before anything is merged.

    letters      common table expression: (id of a word, i, letter)
    vocabulary   relation: (token_id, token bytea, special)
    settings     common table expression made by _tokenizer_settings()

    A character is its token, or else those of its bytes, or else unknown.
-#}
{% macro _letter_tokens(letters, vocabulary, settings) -%}
known_letters as materialized (
    select
        letter.letter,
        known.token_id
    from (select distinct letter from {{ letters }}) as letter
    left join (
        select
            token_id,
            token
        from {{ vocabulary }}
        where octet_length(token) <= 4 and not special
            and not coalesce(
                token_id = any((select byte_token_ids from {{ settings }})::integer[]), false
            )
    ) as known on convert_to(letter.letter, 'UTF8') = known.token
),

letter_tokens as materialized (
    select
        placed.id,
        placed.i,
        token.n,
        token.token_id
    from (
        select
            letters.id,
            letters.i,
            letters.letter,
            known_letters.token_id,
            known_letters.token_id is null
            and lag(known_letters.token_id is null, 1, false) over (
                partition by letters.id order by letters.i
            ) as follows_unknown
        from {{ letters }} as letters
        inner join known_letters on letters.letter = known_letters.letter
    ) as placed
    cross join {{ settings }} as settings
    cross join lateral unnest(
        case
            when placed.token_id is not null then array[placed.token_id]
            when settings.byte_token_ids is not null
                then array(
                    select settings.byte_token_ids[get_byte(letter.bytes, byte) + 1]
                    from (select convert_to(placed.letter, 'UTF8') as bytes) as letter
                    cross join lateral
                        generate_series(0, length(letter.bytes) - 1) as byte
                    order by byte
                )
            when settings.unk_token_id is not null
                and not (settings.fuse_unk and placed.follows_unknown)
                then array[settings.unk_token_id]
        end
    ) with ordinality as token (token_id, n)
)
{%- endmacro %}
