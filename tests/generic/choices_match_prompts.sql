{#-
    Each choice of a prompt is there once, with the number of tokens that it adds, and
    the probabilities of a prompt's choices are a distribution: the softmax of the
    log-likelihoods, of which the largest is the best.

    prompts   relation made by text_prompts()

    Fails with a row for each choice and problem: (prompt_id, choice_number, problem,
    value, what it should be). The var tolerance_probability says how much numbers may
    differ.
-#}
{% test choices_match_prompts(model, prompts) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with given as (
    select
        prompts.prompt_id,
        choice.number::integer as choice_number,
        choice.text as choice,
        jsonb_array_length(
            prompts.choice_token_ids -> choice.number::integer - 1
        ) as tokens
    from {{ prompts }} as prompts
    cross join lateral jsonb_array_elements_text(
        case when prompts.error is null then prompts.choices end
    ) with ordinality as choice (text, number)
    where prompts.finished_at is not null
),

found as (
    select
        model.*,
        sum(probability) over one_prompt as total,
        max(log_likelihood) over one_prompt as largest,
        max(probability) over one_prompt as best_probability,
        count(*) filter (where is_best) over one_prompt as best,
        count(*) over one_choice as times
    from {{ model }} as model
    where error is null
    window
        one_prompt as (partition by prompt_id),
        one_choice as (partition by prompt_id, choice_number)
),

joined as (
    select
        found.*,
        given.prompt_id as given_id,
        given.choice as given_choice,
        given.tokens as given_tokens,
        coalesce(found.prompt_id, given.prompt_id) as id,
        coalesce(found.choice_number, given.choice_number) as number
    from found
    full outer join given using (prompt_id, choice_number)
)

select
    joined.id as prompt_id,
    joined.number as choice_number,
    problem.problem,
    problem.value,
    problem.expected
from joined
cross join lateral (
    values
    ('is missing', choice is null, null, given_choice),
    ('choice', choice <> given_choice, choice, given_choice),
    ('is there more than once', times > 1, times::text, '1'),
    (
        'tokens', given_id is not null and tokens is distinct from given_tokens,
        tokens::text, given_tokens::text
    ),
    (
        'log_likelihood',
        choice is not null and not coalesce(log_likelihood <= 0, false),
        log_likelihood::text, 'a number of at most 0'
    ),
    (
        'mean_log_likelihood',
        abs(mean_log_likelihood * tokens - log_likelihood)
        > {{ dbt_nn.tolerance('probability') }} * tokens,
        mean_log_likelihood::text, (log_likelihood / tokens)::text
    ),
    (
        'the sum of the probabilities',
        not coalesce(abs(total - 1) <= {{ dbt_nn.tolerance('probability') }}, false)
        and choice is not null,
        total::text, '1'
    ),
    (
        'probability',
        abs(
            probability
            - best_probability * {{ dbt_nn.bounded_exp('log_likelihood - largest') }}
        ) > {{ dbt_nn.tolerance('probability') }},
        probability::text,
        (
            best_probability * {{ dbt_nn.bounded_exp('log_likelihood - largest') }}
        )::text
    ),
    ('how many are the best', best <> 1, best::text, '1'),
    ('is the best', is_best and log_likelihood < largest, choice, null)
) as problem (problem, is_there, value, expected)
where problem.is_there
order by id, number, problem.problem
{% endtest %}
