select
    name,
    {{ rounded(softmax('numbers.x')) }} as y
from {{ ref('unit_numbers') }} as numbers
