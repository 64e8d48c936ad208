select
    token_id,
    {{ dbt_nn.decode_utf8('token') }} as text,
    {{ dbt_nn.decode_utf8(dbt_nn.complete_utf8('token')) }} as complete
from {{ ref('unit_vocabulary') }}
