with result as (
    {{ dbt_nn.rotary_embedding(
        ref('unit_tokens'),
        "(select value from " ~ ref('unit_config') ~ ")",
        head_size='6',
    ) }}
)

select
    {{ dbt_nn.place('result') }},
    {{ dbt_nn.rounded('result.activation') }} as activation
from result
