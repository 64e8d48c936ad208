-- The prompts, made from the project's own data.
select
    character_id as prompt_id,
    name || ' was ' || mood || ', and' as prompt,
    character_id as seed,
    case when mood = 'vexed' then 0.9 end as temperature
from {{ ref('characters') }}
