select
    options.name,
    {{ rounded(penalized_logits('options', ref('unit_tokens'))) }} as logits
from {{ ref('unit_logits') }} as options
