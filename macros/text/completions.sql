{#-
    The completions, one row a prompt.

    samples   relation made by text_sample()
    prompts   relation made by text_prompts()
    choices   relation made by text_choices(): the completion of a prompt with
              choices is the best of them
    earlier   the table itself where it is there already: only what is finished
              since is given
    -> (prompt_id, prompt, completion, finish_reason, error, prompt_tokens,
       completion_tokens, seed, options, checkpoint, finished_at)

    The completion is decoded from the bytes of all its tokens, since a
    character can be split over two; the end-of-text token is counted and not
    shown. Of a row with an error there is none.
-#}
{% macro text_completions(samples, prompts, choices, earlier=none) -%}
select
    prompts.prompt_id,
    prompts.prompt,
    case
        when prompts.error is null then coalesce(best.choice, generated.text)
    end as completion,
    case
        when prompts.error is not null then null
        when best.choice is not null then 'choice'
        else coalesce(generated.finish_reason, 'length')
    end as finish_reason,
    prompts.error,
    cardinality(prompts.prompt_token_ids) as prompt_tokens,
    generated.n as completion_tokens,
    prompts.seed,
    jsonb_build_object(
        {%- for name in dbt_nn.generation_options() %}
        '{{ name }}', prompts.{{ name }}{{ ',' if not loop.last }}
        {%- endfor %}
    ) as options,
    prompts.checkpoint,
    prompts.finished_at
from {{ prompts }} as prompts
cross join lateral (
    select
        coalesce(string_agg(samples.piece, '' order by samples.position), '') as text,
        max(samples.finish_reason) as finish_reason,
        count(*)::integer as n
    from {{ samples }} as samples
    where samples.sequence_id = prompts.sequence_id
) as generated
left join {{ choices }} as best
    on prompts.prompt_id = best.prompt_id
    and prompts.choice_token_ids is not null
    and best.is_best
where {{ dbt_nn.is_finished_since('prompts', earlier) }}
order by prompts.sequence_id
{%- endmacro %}


{#- A condition: the prompt is finished, and `earlier` has it not. -#}
{% macro is_finished_since(prompts, earlier) -%}
{{ prompts }}.finished_at is not null
    {%- if earlier %}
    and not exists (
        select from {{ earlier }} as earlier
        where earlier.prompt_id = {{ prompts }}.prompt_id
            and earlier.finished_at = {{ prompts }}.finished_at
    )
    {%- endif %}
{%- endmacro %}
