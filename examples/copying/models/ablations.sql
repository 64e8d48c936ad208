-- Each head put to zero in a sentence of its own.
select
    block * {{ var('heads') }} + head + 1 as prompt_id,
    format('blocks.%s.attn.hook_z', block) as layer,
    head,
    'zero' as what
from generate_series(0, {{ var('blocks') - 1 }}) as block
cross join generate_series(0, {{ var('heads') - 1 }}) as head
