{#-
    The next token of each sequence at the frontier.

    logits       relation made by lm_head(): each sequence's newest position
    prompts      relation made by text_prompts(): the options
    tokens       relation made by text_tokens()
    vocabulary, config   of the checkpoint
    -> one row a token: (sequence_id, position, prompt_id, completion_id,
       token_id, token, piece, logprob, rank, alternatives, finish_reason)

    Order and meaning of the options are those of transformers: repetition
    penalty on the logits, then temperature, top-k, top-p, min-p. The random
    number of a token is a function of (seed, prompt_id, position) alone.
    logprob, rank and alternatives are of the network's own distribution,
    before any option. finish_reason is NULL until a sequence's last token.
    A prompt with a regex or a json_schema gets tokens of that form alone.
-#}
{% macro text_sample(logits, prompts, tokens, vocabulary, config) -%}
{#- A logit is sorted and has its exp(): as long as some hundred multiply-adds. -#}
{{ dbt_nn.parallel_work(
    '(select count(*) from ' ~ dbt_nn.frontier() ~ ') * 500 * '
    ~ dbt_nn.hyperparameter(config, 'vocab_size'),
    each_step=true
) }}
with newest as materialized (
    select
        prompts.*,
        {# a slice of all is a copy in memory; TOAST would be read at each use #}
        head.logits[:] as logits,
        head.position + 1 as position,
        {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }} as context_length,
        head.position + 2 - cardinality(prompts.prompt_token_ids) as generated
    from (
        select sequence_id, max(position) as position
        from {{ dbt_nn.frontier() }} as frontier
        group by sequence_id
    ) as last
    cross join {{ dbt_nn.at_place(prompts, 'prompts', 'last', ['sequence_id']) }}
    cross join {{ dbt_nn.at_place(logits, 'head', 'last') }}
    where {{ dbt_nn.in_band('last') }}
),

{# The five likeliest tokens. #}
likeliest as materialized (
    select
        newest.sequence_id,
        max(best.x) as maximum,
        array_agg(best.token_id order by best.x desc, best.token_id) as token_ids,
        array_agg(best.x order by best.x desc, best.token_id) as logits
    from newest
    cross join lateral (
        {{ dbt_nn.likeliest_tokens('newest.logits', 5) | indent(8) }}
    ) as best
    where newest.position < newest.context_length
        and newest.generated <= newest.max_new_tokens
    group by newest.sequence_id
),

chosen as materialized (
    select
        choice.*,
        choice.logits[choice.token_id + 1]::float8 as logit
    from (
        select
            newest.*,
            case
                when newest.form_id is not null then (
                    {{ dbt_nn.choose_token(
                        dbt_nn.penalized_logits('newest', tokens),
                        'newest',
                        dbt_nn.form_tokens('newest', tokens, vocabulary, config),
                    ) | indent(20) }}
                )
                when not newest.do_sample and newest.repetition_penalty = 1
                    then likeliest.token_ids[1]
                else (
                    {{ dbt_nn.choose_token(dbt_nn.penalized_logits('newest', tokens), 'newest') | indent(20) }}
                )
            end as token_id
        from newest
        inner join likeliest using (sequence_id)
        offset 0
    ) as choice
),

{# log p = logit - normalizer #}
ranked as materialized (
    select
        chosen.sequence_id,
        likeliest.maximum + ln(total.exponentials) as normalizer,
        total.rank
    from chosen
    inner join likeliest using (sequence_id)
    cross join lateral (
        select
            sum({{ dbt_nn.bounded_exp('score.x - likeliest.maximum') }}) as exponentials,
            1 + count(*) filter (where score.x > chosen.logit) as rank
        from (select unnest(chosen.logits) as x) as score
    ) as total
),

{#
    The bytes before the token: as many as a stop string that it ends, or a
    character that is split over tokens, can reach back.
#}
preceded as materialized (
    select
        chosen.sequence_id,
        coalesce(string_agg(vocabulary.token, '' order by tokens.position), '') as bytes,
        coalesce(
            string_agg(vocabulary.token, '' order by tokens.position)
                filter (where tokens.step > 0),
            ''
        ) as generated_bytes
    from chosen
    inner join {{ tokens }} as tokens
        on chosen.sequence_id = tokens.sequence_id
        and tokens.position >= chosen.position - greatest(
            3, (select max(octet_length(stop)) from unnest(chosen.stop_strings) as stop)
        )
    inner join {{ vocabulary }} as vocabulary
        on tokens.token_id = vocabulary.token_id
    group by chosen.sequence_id
),

finished as materialized (
    select
        chosen.*,
        coalesce(vocabulary.token, '') as token,
        coalesce(preceded.generated_bytes, '') as generated_bytes,
        case
            when (
                select eos.value @> to_jsonb(chosen.token_id)
                from {{ config }} as eos
                where eos.parameter = 'eos_token_id'
            ) then 'eos_token'
            when exists (
                select
                from unnest(chosen.stop_strings) as stop
                where position(
                    convert_to(stop, 'UTF8')
                    in {{ dbt_nn.db_function('right_bytes') }}(
                        preceded.bytes, octet_length(stop) - 1
                    ) || vocabulary.token
                ) > 0
            ) then 'stop_sequence'
            when chosen.generated >= chosen.max_new_tokens
                or chosen.position + 1 >= chosen.context_length
                then 'length'
        end as finish_reason
    from chosen
    left join preceded using (sequence_id)
    left join {{ vocabulary }} as vocabulary using (token_id)
)

select
    finished.sequence_id,
    finished.position,
    finished.prompt_id,
    finished.completion_id,
    finished.token_id,
    finished.token,
    {{ dbt_nn.db_function('next_piece') }}(
        finished.generated_bytes,
        case when finished.finish_reason is distinct from 'eos_token' then finished.token else '' end,
        finished.finish_reason is not null
    ) as piece,
    finished.logit - ranked.normalizer as logprob,
    ranked.rank,
    (
        select jsonb_agg(
            jsonb_build_object(
                'token_id', best.token_id,
                'token', {{ dbt_nn.db_function('decode_utf8') }}(vocabulary.token),
                'logprob', best.logit - ranked.normalizer
            )
            order by best.i
        )
        from unnest(likeliest.token_ids, likeliest.logits)
            with ordinality as best (token_id, logit, i)
        left join {{ vocabulary }} as vocabulary using (token_id)
    ) as alternatives,
    finished.finish_reason
from finished
inner join likeliest using (sequence_id)
inner join ranked using (sequence_id)
{%- endmacro %}
