with prompts as (
    {{ dbt_nn.text_prompts(
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
    {{ dbt_nn.text_tokens('prompts') }}
) as tokens
