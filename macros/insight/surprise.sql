{#-
    How surprised the network is by each token of a text: -log2 of its probability after
    those before it, in bits.

    tokens   relation made by text_insight_tokens()
    lens     relation made by logit_lens()
    -> one row a token, the last generated one too: (sequence_id, prompt_id, position,
       token_id, piece, is_generated, bits, word_number, word)

    Words are what blanks divide, numbered from 1; a word has the blanks before it and
    the punctuation after it. The bits of a word are the sum of its tokens' (Hale 2001,
    "A probabilistic Earley parser as a psycholinguistic model").
-#}
{% macro surprise(tokens, lens) -%}
with text as (
    select
        tokens.sequence_id,
        tokens.prompt_id,
        tokens.position,
        tokens.token_id,
        tokens.piece,
        tokens.is_generated
    from {{ tokens }} as tokens
    union all
    {# the token after the last place #}
    select
        last.sequence_id,
        last.prompt_id,
        last.position + 1,
        last.next_token_id,
        last.next_piece,
        true
    from {{ tokens }} as last
    where last.next_token_id is not null
        and not exists (
            select from {{ tokens }} as later
            where later.sequence_id = last.sequence_id
                and later.position = last.position + 1
        )
),

marked as (
    select
        text.*,
        lag(text.piece) over one_text is null
        or text.piece ~ '^\s' and lag(text.piece) over one_text !~ '\s$'
        as begins_word
    from text
    window one_text as (partition by text.sequence_id order by text.position)
),

numbered as (
    select
        marked.*,
        count(*) filter (where marked.begins_word) over (
            partition by marked.sequence_id order by marked.position
        )::integer as word_number
    from marked
)

select
    numbered.sequence_id,
    numbered.prompt_id,
    numbered.position,
    numbered.token_id,
    numbered.piece,
    numbered.is_generated,
    -lens.next_token_logprob / ln(2) as bits,
    numbered.word_number,
    btrim(
        string_agg(numbered.piece, '') over (
            partition by numbered.sequence_id, numbered.word_number
            order by numbered.position
            rows between unbounded preceding and unbounded following
        ),
        E' \n\t\r'
    ) as word
from numbered
left join {{ lens }} as lens
    on numbered.sequence_id = lens.sequence_id
    and numbered.position = lens.position + 1
    and lens.label = 'final_post'
order by numbered.sequence_id, numbered.position
{%- endmacro %}
