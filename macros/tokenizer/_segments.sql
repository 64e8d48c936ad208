{#-
    The common table expressions that every tokenizer begins with: special tokens
    are matched whole, and what is between them is a text of its own.

    texts       relation with one row a sequence: (key, text)
    vocabulary  relation: (token_id, token bytea, special)
    config      relation: (parameter, value jsonb), or none; lstrip_token_ids and
                rstrip_token_ids are the tokens that take the white space before
                them, or after them
    chosen      condition: which special tokens; all of them by default
    name        a prefix of the names of the common table expressions
    -> segments (sequence_id, segment, content), and found_specials
       (sequence_id, segment, tokens): in a text their segments take turns
-#}
{% macro _segments(
    texts, vocabulary, key, text, config=none, chosen='true', name=''
) -%}
{{ name }}special_tokens as materialized (
    select
        token_id,
        convert_from(token, 'UTF8') collate "C" as token
    from {{ vocabulary }}
    where special and octet_length(token) > 0{{ ' and ' ~ chosen if chosen != 'true' }}
),

-- The longest one wins where several match, in tokenizers as in Postgres.
{{ name }}special_pattern as materialized (
    select
        string_agg(
            regexp_replace(token, '[][\\^$.|?*+(){}]', '\\\&', 'g'), '|'
        ) as pattern
    from {{ name }}special_tokens
),

-- What is between special tokens is a text of its own, which ends before them.
{{ name ~ ('parts_of_text' if config else 'segments') }} as materialized (
    select
        source.{{ key }} as sequence_id,
        part.segment,
        part.content
    from {{ texts }} as source
    cross join {{ name }}special_pattern as special
    cross join lateral (
        select
            2 * part.i as segment,
            part.content
        from
            regexp_split_to_table(
                source.{{ text }} collate "C", special.pattern
            ) with ordinality as part (content, i)
        union all
        select
            0 as segment,
            source.{{ text }} collate "C" as content
        where special.pattern is null
    ) as part
),

{{ name }}found_specials as materialized (
    select
        source.{{ key }} as sequence_id,
        2 * part.i + 1 as segment,
        array[special.token_id] as tokens
    from {{ texts }} as source
    cross join {{ name }}special_pattern as special_pattern
    cross join lateral
        regexp_matches(
            source.{{ text }} collate "C", special_pattern.pattern, 'g'
        ) with ordinality as part (match, i)
    inner join {{ name }}special_tokens as special on part.match[1] = special.token
)
{%- if config -%}
,

-- A text that no such token is next to stays as it is, by a pattern that it hasn't.
{% set space = '[' ~ dbt_nn._unicode_class('space').split() | join ~ ']' -%}
{{ name }}segments as materialized (
    select
        part.sequence_id,
        part.segment,
        regexp_replace(
            part.content,
            concat_ws(
                '|',
                case
                    when {{ dbt_nn.hyperparameter(config, 'rstrip_token_ids', 'jsonb') }}
                        @> to_jsonb(before.tokens)
                        then '^{{ space }}+'
                end,
                case
                    when {{ dbt_nn.hyperparameter(config, 'lstrip_token_ids', 'jsonb') }}
                        @> to_jsonb(after.tokens)
                        then '{{ space }}+$'
                end,
                '^$'
            ),
            '',
            'g'
        ) as content
    from {{ name }}parts_of_text as part
    left join {{ name }}found_specials as before
        on
            part.sequence_id = before.sequence_id
            and part.segment - 1 = before.segment
    left join {{ name }}found_specials as after
        on
            part.sequence_id = after.sequence_id
            and part.segment + 1 = after.segment
)
{%- endif %}
{%- endmacro %}


{#-
    The `select` that every tokenizer ends with: the tokens of its common table
    expression `encoded` (sequence_id, segment, i, tokens), numbered.

    -> (key, position from 0, token_id)
-#}
{% macro _numbered_tokens(key) -%}
select
    encoded.sequence_id as {{ key }},
    (
        row_number() over (
            partition by encoded.sequence_id
            order by encoded.segment, encoded.i, token.i
        ) - 1
    )::integer as position,
    token.token_id
from encoded
cross join lateral unnest(encoded.tokens)
    with ordinality as token (token_id, i)
{%- endmacro %}
