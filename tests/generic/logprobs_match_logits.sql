{#-
    The probabilities of the generated tokens are those of the network: logprob
    is the log softmax of the logits at the place before, rank and alternatives
    are their order, the alternatives are the likeliest tokens, each once, from
    the likeliest down, and their probabilities add up to 1 at most. Where a
    sequence is greedy, its tokens are of rank 1.

    logits    relation made by lm_head()
    prompts   relation made by text_prompts()

    Only the sequences that the logits are of: those of the current batch.

    Fails with a row for each token and problem: (place, token, problem, value,
    what it should be). The var tolerance_probability says how much numbers may
    differ.
-#}
{% test logprobs_match_logits(model, logits, prompts) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with generated as (
    select
        model.*,
        head.logits,
        head.logits[model.token_id + 1]::float8 as logit,
        not prompts.do_sample and prompts.repetition_penalty = 1 as is_greedy
    from {{ model }} as model
    left join {{ logits }} as head
        on
            model.sequence_id = head.sequence_id
            and model.position - 1 = head.position
    left join {{ prompts }} as prompts
        on model.sequence_id = prompts.sequence_id
    where model.sequence_id in (
        select others.sequence_id from {{ logits }} as others
    )
),

-- log p = logit - normalizer
normalized as (
    select
        generated.*,
        largest.x + ln(total.exponentials) as normalizer,
        total.larger
    from generated
    cross join lateral (
        select max(score.x)::float8 as x
        from unnest(generated.logits) as score (x)
    ) as largest
    cross join lateral (
        select
            sum({{ dbt_nn.bounded_exp('score.x - largest.x') }}) as exponentials,
            count(*) filter (where score.x > generated.logit) as larger
        from unnest(generated.logits) as score (x)
    ) as total
),

alternatives as (
    select
        normalized.sequence_id,
        normalized.position,
        normalized.token_id,
        normalized.logprob,
        normalized.rank,
        normalized.logits,
        normalized.normalizer,
        (choice.item ->> 'token_id')::integer as choice,
        (choice.item ->> 'logprob')::float8 as choice_logprob,
        choice.i
    from normalized
    cross join lateral jsonb_array_elements(normalized.alternatives)
        with ordinality as choice (item, i)
),

compared as (
    select
        alternatives.*,
        logits[choice + 1] - normalizer as expected,
        lag(choice_logprob) over place as previous,
        count(*) over (partition by sequence_id, position, choice) as times
    from alternatives
    window place as (partition by sequence_id, position order by i)
),

sums as (
    select
        sequence_id,
        position,
        count(*) as n,
        sum(exp(choice_logprob)) as total,
        min(choice_logprob) as least
    from alternatives
    group by sequence_id, position
),

problems as (
    select
        sequence_id,
        position,
        token_id,
        'has no logits' as problem,
        null::float8 as value,
        null::float8 as expected
    from generated
    where logit is null
    union all
    select
        sequence_id,
        position,
        token_id,
        'logprob',
        logprob,
        logit - normalizer
    from normalized
    where
        logit is not null
        and not coalesce(
            abs(logprob - (logit - normalizer))
            <= {{ dbt_nn.tolerance('probability') }},
            false
        )
    union all
    select
        sequence_id,
        position,
        token_id,
        'rank',
        rank,
        larger + 1
    from normalized
    where logit is not null and rank is distinct from larger + 1
    union all
    select
        sequence_id,
        position,
        token_id,
        'rank of a greedy token',
        rank,
        1
    from normalized
    where is_greedy and rank > 1
    union all
    select
        sequence_id,
        position,
        token_id,
        format('logprob of alternative %s', i),
        choice_logprob,
        expected
    from compared
    where
        not coalesce(
            abs(choice_logprob - expected) <= {{ dbt_nn.tolerance('probability') }},
            false
        )
    union all
    select
        sequence_id,
        position,
        token_id,
        format('alternative %s is likelier than the one before', i),
        choice_logprob,
        previous
    from compared
    where choice_logprob > previous
    union all
    select
        sequence_id,
        position,
        token_id,
        format('alternative %s is there %s times', i, times),
        choice,
        null
    from compared
    where times > 1
    union all
    select
        normalized.sequence_id,
        normalized.position,
        normalized.token_id,
        'number of alternatives',
        sums.n,
        least(5, cardinality(normalized.logits))
    from normalized
    left join sums using (sequence_id, position)
    where sums.n is distinct from least(5, cardinality(normalized.logits))
    union all
    select
        sequence_id,
        position,
        token_id,
        'is likelier than the last alternative and not among them',
        logprob,
        least
    from normalized
    inner join sums using (sequence_id, position)
    where
        logprob > least + {{ dbt_nn.tolerance('probability') }}
        and not alternatives @> jsonb_build_array(
            jsonb_build_object('token_id', token_id)
        )
    union all
    select
        sequence_id,
        position,
        null,
        'sum of the probabilities of the alternatives',
        total,
        1
    from sums
    where total > 1 + {{ dbt_nn.tolerance('probability') }}
)

select *
from problems
order by sequence_id, position, problem
{% endtest %}
