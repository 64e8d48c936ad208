with encoded as (
    {{ dbt_nn.byte_pair_encode(
        ref('unit_texts'), ref('unit_vocabulary'), ref('unit_merges')
    ) }}
)

select
    encoded.sequence_id,
    encoded.position,
    {{ dbt_nn.decode_utf8('vocabulary.token') }} as token
from encoded
inner join {{ ref('unit_vocabulary') }} as vocabulary
    on encoded.token_id = vocabulary.token_id
