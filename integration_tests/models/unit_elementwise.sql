select
    name,
    {{ dbt_nn.rounded(dbt_nn.elementwise(
        var('unit_activation', 'gelu_new'), 'numbers.x::vector'
    )) }} as y
from {{ ref('unit_numbers') }} as numbers
