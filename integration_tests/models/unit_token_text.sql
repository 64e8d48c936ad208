select {{ dbt_nn.token_text('token', 'token_id') }} as text
from {{ ref('unit_vocabulary') }}
