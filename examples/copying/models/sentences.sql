-- The sentence once for each head, as it is (0), and with another name before (-1).
select
    copy.prompt_id,
    case copy.prompt_id
        when -1 then replace('{{ var("sentence") }}', '{{ var("name") }}', '{{ var("other_name") }}')
        else '{{ var("sentence") }}'
    end || ' {{ var("name") }}' as prompt
from generate_series(-1, {{ var('blocks') * var('heads') }}) as copy (prompt_id)
