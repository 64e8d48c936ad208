{#-
    The completions, one row a prompt.

    samples   relation made by gpt2_sample(), prompts and tokens likewise
    -> (prompt_id, prompt, completion, finish_reason, prompt_tokens,
       completion_tokens, seed)

    The completion is decoded from the bytes of all its tokens, since a
    character can be split over two; the end-of-text token is counted and not
    shown.
-#}
{% macro gpt2_completions(samples, prompts, tokens) -%}
select
    prompts.prompt_id,
    prompts.prompt,
    coalesce(string_agg(samples.piece, '' order by samples.position), '') as completion,
    coalesce(max(samples.finish_reason), 'length') as finish_reason,
    (
        select count(*)
        from {{ tokens }} as tokens
        where tokens.sequence_id = prompts.sequence_id and tokens.step = 0
    )::integer as prompt_tokens,
    count(samples.token_id)::integer as completion_tokens,
    prompts.seed
from {{ prompts }} as prompts
left join {{ samples }} as samples using (sequence_id)
group by prompts.sequence_id, prompts.prompt_id, prompts.prompt, prompts.seed
order by prompts.sequence_id
{%- endmacro %}
