with texts as (
    select * from {{ ref('unit_texts') }}
)

select
    texts.sequence_id,
    part.i as position,
    -- As JSON, in which a newline shows.
    to_jsonb(part.content)::text as content
from texts
cross join lateral {{ dbt_nn.db_function('split_pre_tokens') }}(texts.prompt, 'gpt2')
    with ordinality as part (content, i)
