{#-
    The texts as token ids, one row a sequence: a text, or a chunk of one.

    texts       relation of the texts
    key, text   names of its columns: what names a text, and the text itself
    text_pair   name of a column of second texts, for networks that read pairs; or none
    options     of all texts, see encoder_options() and run_options()
    checkpoint  its schema
    vocabulary, config   of the checkpoint
    words       its characters (wordpiece), merges (bpe) or replacements (unigram)
    tokenizer   'wordpiece', 'bpe' or 'unigram'
    first_position   the row of the position embedding of a text's first token
    earlier     the table itself where it is there already: of a text that is
                unchanged no row is given
    -> (sequence_id, key, chunk, token_ids, first_tokens, truncated, request, error,
       checkpoint, batch, finished_at)

    A text is cut at max_seq_length, as sentence-transformers does; or, with the option
    chunk_overlap, in chunks that share so many tokens, each with the prompt before it.
    `request` is a digest of all that decides the result, the checkpoint included.

    A text that cannot be read says why in `error`. What concerns all (an option, a key
    that is NULL or there twice) raises an error, before anything of an earlier run is
    replaced.
-#}
{% macro encoder_texts(
    texts, key, text, text_pair, options, checkpoint, vocabulary, words, config,
    tokenizer='wordpiece', first_position=0, earlier=none
) -%}
    {%- do dbt_nn.check_settings() -%}
    {%- do dbt_nn.refuse_interventions() -%}
    {%- set given = {'key': key, 'text': text, 'pair': text_pair} -%}
with options as materialized (
    {{ dbt_nn.run_options(options, dbt_nn.encoder_options() | list, 'encoder') | indent(4) }}
),

settings as materialized (
    {{ dbt_nn.encoder_settings(
        'options', checkpoint, config, text_pair, tokenizer, first_position
    ) | indent(4) }}
),

given as materialized (
    select
        {%- for name, column in given.items() if column %}
        dbt_nn_row.{{ adapter.quote(column) }}{{ '::text' if name != 'key' }} as {{ name }}{{ ',' if not loop.last }}
        {%- endfor %}
    from {{ dbt_nn.sampled(texts, 'dbt_nn_row') }}
),

relation as materialized (
    select case
        when exists (select from given where key is null)
            then {{ dbt_nn.literal(key) }} || ' is NULL'
        else (
            select format(
                '%s %s is there %s times', {{ dbt_nn.literal(key) }}, key, count(*)
            )
            from given
            group by key
            having count(*) > 1
            limit 1
        )
    end as problem
),

digested as (
    select
        given.*,
        md5(concat_ws(
            '/', settings.request, to_jsonb(given.text)
            {%- if text_pair %}, to_jsonb(given.pair){% endif %}
        ))::uuid as request
    from given
    cross join settings
    cross join relation
    where {{ dbt_nn.db_function('check_input') }}(
        'the relation of texts ' || {{ dbt_nn.literal(dbt_nn.whole_relation(texts)) }}
        || ': ' || relation.problem
    )
),

asked as materialized (
    select
        row_number() over (order by key)::integer as number,
        digested.*
    from digested
    {%- if earlier %}
    where not exists (
        select from {{ earlier }} as earlier
        where earlier.key = digested.key
            and earlier.request = digested.request
    )
    {%- endif %}
),

readable as materialized (
    select
        asked.number as sequence_id,
        settings.prompt || asked.text as prompt
    from asked
    cross join settings
    where asked.text is not null
    {%- if text_pair %}
    union all
    select
        -asked.number,
        asked.pair
    from asked
    where asked.pair is not null
    {%- endif %}
    union all
    {# the prompt itself, to be put before each chunk #}
    select
        0,
        settings.prompt
    from settings
    where settings.overlap is not null
),

encoded as materialized (
    select
        sequence_id,
        array_agg(token_id order by position) as ids
    from (
        {{ dbt_nn.encoded_texts('readable', vocabulary, words, config, tokenizer) | indent(8) }}
    ) as token
    group by sequence_id
),

prompt_tokens as materialized (
    select encoded.ids
    from encoded
    cross join settings
    where encoded.sequence_id = 0
        and {{ dbt_nn.db_function('check_input') }}('the encoder options: ' || case
            when settings.overlap >= settings.length - settings.special - cardinality(encoded.ids)
                then format(
                    'the prompt has %s tokens and chunk_overlap is %s: together they must be '
                    'less than the %s tokens of a chunk',
                    cardinality(encoded.ids), settings.overlap, settings.length - settings.special
                )
        end)
),

measured as (
    select
        asked.number,
        asked.key,
        asked.request,
        case
            when asked.text is null then {{ dbt_nn.literal(text ~ ' is NULL') }}
            {%- if text_pair %}
            when asked.pair is null then {{ dbt_nn.literal(text_pair ~ ' is NULL') }}
            {%- endif %}
        end as error,
        coalesce(text.ids, '{}') as ids,
        {%- if text_pair %}
        coalesce(pair.ids, '{}') as pair_ids,
        {%- endif %}
        {# as far as it is what the text's tokens begin with: the last one may be of
           both, as where "query: " ends in the blank of a word of byte-level BPE #}
        coalesce(prompt.ids[:(
            select coalesce(min(i) - 1, cardinality(prompt.ids))
            from generate_subscripts(prompt.ids, 1) as i
            where prompt.ids[i] is distinct from text.ids[i]
        )], '{}') as prompt_ids,
        settings.length,
        settings.special,
        settings.overlap,
        settings.cls,
        settings.sep
    from asked
    cross join settings
    left join encoded as text on asked.number = text.sequence_id
    {%- if text_pair %}
    left join encoded as pair on -asked.number = pair.sequence_id
    {%- endif %}
    left join prompt_tokens as prompt on true
),

{% if text_pair -%}
framed as (
    select
        measured.*,
        0 as chunk,
        array[cls] || ids[:room.first] || array[sep]
        {%- if tokenizer != 'wordpiece' %} || array[sep]{% endif %}
        || pair_ids[:room.second] || array[sep] as token_ids,
        {% if tokenizer != 'wordpiece' %}cardinality(ids) + cardinality(pair_ids) + 4{% else %}room.first + 2{% endif %} as first_tokens,
        room.first < cardinality(ids) or room.second < cardinality(pair_ids) as truncated
    from measured
    cross join lateral {{ dbt_nn.db_function('room_for_pair') }}(
        cardinality(ids), cardinality(pair_ids), measured.length - measured.special
    ) as room
)
{%- else -%}
framed as (
    select
        measured.*,
        piece.chunk,
        array[cls] || piece.ids || array[sep] as token_ids,
        cardinality(piece.ids) + 2 as first_tokens,
        overlap is null and cardinality(measured.ids) > length - special as truncated
    from measured
    cross join lateral (
        select
            chunk,
            case
                when overlap is null then measured.ids[:length - special]
                else prompt_ids || body.ids[
                    chunk * (body.room - overlap) + 1:chunk * (body.room - overlap) + body.room
                ]
            end as ids
        from (
            select
                measured.ids[cardinality(prompt_ids) + 1:] as ids,
                length - special - cardinality(prompt_ids) as room
        ) as body
        cross join generate_series(
            0,
            case
                when overlap is null or cardinality(body.ids) <= body.room then 0
                else (cardinality(body.ids) - body.room - 1) / (body.room - overlap) + 1
            end
        ) as chunk
    ) as piece
)
{%- endif %},

counted as (
    select
        framed.*,
        row_number() over in_order as n,
        sum(case when error is null then cardinality(token_ids) else 0 end) over in_order
        - cardinality(token_ids) as tokens_before,
        sum(cardinality(token_ids)) over () as all_tokens
    from framed
    window in_order as (order by number, chunk)
)

select
    (n
    {%- if earlier %}
    + (select coalesce(max(sequence_id), 0) from {{ earlier }})
    {%- endif %})::integer as sequence_id,
    key,
    chunk,
    case when error is null then token_ids end as token_ids,
    case when error is null then first_tokens end as first_tokens,
    case when error is null then truncated end as truncated,
    request,
    error,
    {{ dbt_nn.literal(checkpoint) }} as checkpoint,
    (
        {%- if earlier %}
        (select coalesce(max(batch), 0) from {{ earlier }}) +
        {%- endif %}
        floor(greatest(tokens_before, 0) / {{ dbt_nn.encoder_batch_tokens(config, checkpoint, 'all_tokens') | indent(8) }}) + 1
    )::integer as batch,
    null::timestamptz as finished_at
from counted
{%- endmacro %}


{#- A SELECT of the tokens of `texts`, (sequence_id, position, token_id). -#}
{% macro encoded_texts(texts, vocabulary, words, config, tokenizer) -%}
{% if tokenizer == 'wordpiece' -%}
{{ dbt_nn.word_piece_encode(texts, vocabulary, words, config) }}
{%- elif tokenizer == 'unigram' -%}
{{ dbt_nn.unigram_encode(texts, vocabulary, words, config) }}
{%- else -%}
{{ dbt_nn.byte_pair_encode(texts, vocabulary, words, config=config) }}
{%- endif %}
{%- endmacro %}
