select
    name,
    {{ dbt_nn.rounded(dbt_nn.softmax('numbers.x')) }} as y
from {{ ref('unit_numbers') }} as numbers
