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


{#- The prompts relation that a var names: a model or seed of this project, or
    any relation of the database as schema.name. -#}
{% macro prompts_relation(name) -%}
    {{ return(name if '.' in name else ref(name)) }}
{%- endmacro %}


{#- Stops the run with advice unless the network's checkpoint is loaded and as
    deep as the folder of models. A statement for a pre-hook. -#}
{% macro check_checkpoint(schema, network, n_layer) -%}
    do $body$
    declare
        depth integer;
    begin
        if to_regclass('"{{ schema }}".config') is null then
            raise exception 'checkpoint {{ schema }} is not loaded in database %: '
                'run python scripts/load_checkpoint.py FOLDER_OR_HUB_NAME '
                '--name {{ schema }} (or make checkpoint for the bundled ones), '
                'or name another in the var {{ network }}_checkpoint',
                current_database();
        end if;
        execute 'select value::integer from "{{ schema }}".config where parameter = ''n_layer'''
            into depth;
        if depth is distinct from {{ n_layer }} then
            raise exception 'checkpoint {{ schema }} has % layers and the models '
                'in models/{{ network }} have {{ n_layer }}: run python '
                'scripts/generate_network.py FOLDER --name ANOTHER_NETWORK, then '
                'dbt run --select ANOTHER_NETWORK', depth;
        end if;
    end
    $body$
{%- endmacro %}
