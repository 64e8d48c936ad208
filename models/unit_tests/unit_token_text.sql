select {{ token_text('token', 'token_id') }} as text
from {{ ref('unit_vocabulary') }}
