select
    options.name,
    options.seed,
    choice.token_id
from {{ ref('unit_logits') }} as options
cross join lateral (
    {{ dbt_nn.choose_token('options.logits', 'options') }}
) as choice
