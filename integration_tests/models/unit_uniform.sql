select
    seed,
    prompt_id,
    position,
    round({{ dbt_nn.uniform('seed', 'prompt_id', 'position') }}::numeric, 12) as u
from {{ ref('unit_logits') }}
