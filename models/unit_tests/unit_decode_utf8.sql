select
    token_id,
    {{ decode_utf8('token') }} as text,
    {{ decode_utf8(complete_utf8('token')) }} as complete
from {{ ref('unit_vocabulary') }}
