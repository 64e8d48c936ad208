-- How much less likely the name is without a head: the logarithm of the ratio.
with names as (
    -- the sentence's last token is the name
    select distinct on (prompt_id)
        prompt_id,
        logprob
    from {{ ref('dbt_nn', 'gpt2_token_scores') }}
    order by prompt_id, position desc
)

select
    format('L%sH%s', (ablated.prompt_id - 1) / {{ var('heads') }}, (ablated.prompt_id - 1) % {{ var('heads') }}) as head,
    round(ablated.logprob::numeric, 3) as logprob,
    round((whole.logprob - ablated.logprob)::numeric, 3) as drop,
    round((whole.logprob - without_name.logprob)::numeric, 3) as drop_without_name
from names as ablated
inner join names as whole on whole.prompt_id = 0
inner join names as without_name on without_name.prompt_id = -1
where ablated.prompt_id > 0
-- after {{ ref('dbt_nn', 'gpt2_completion_tokens') }}, whose loop reads all sentences
order by drop desc
