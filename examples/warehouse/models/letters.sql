-- What the network made of them, back beside the project's own columns.
select
    characters.name,
    completions.prompt || completions.completion as letter,
    completions.finish_reason
from {{ ref('dbt_nn', 'gpt2_completions') }} as completions
inner join {{ ref('characters') }} as characters
    on completions.prompt_id = characters.character_id
