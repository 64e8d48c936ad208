with prompts as (
    {{ dbt_nn.text_prompts(
        ref('unit_prompts'),
        var('unit_options', {}),
        'unit',
        ref('unit_vocabulary'),
        ref('unit_merges'),
        ref('unit_config'),
    ) }}
)

select
    prompts.*,
    prompts.prompt_token_ids::text as token_ids,
    to_jsonb(prompts.stop_strings)::text as stops,
    prompts.choice_token_ids::text as choice_ids
from prompts
