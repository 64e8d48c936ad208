with prompts as (
    {{ gpt2_prompts(
        ref('unit_prompts'),
        {},
        'unit',
        ref('unit_vocabulary'),
        ref('unit_merges'),
        ref('unit_config'),
    ) }}
)

select *
from (
    {{ gpt2_tokens('prompts') }}
) as tokens
