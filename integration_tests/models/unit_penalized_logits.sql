select
    options.name,
    {{ dbt_nn.rounded(dbt_nn.penalized_logits('options', ref('unit_tokens'))) }} as logits
from {{ ref('unit_logits') }} as options
