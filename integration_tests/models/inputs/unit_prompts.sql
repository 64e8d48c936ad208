-- Prompts, with any generation options.
select
    null::integer as prompt_id,
    null::text as prompt
