{#-
    What the generation materialization needs to know of a text network.
-#}

{#- A SELECT that raises an error unless the layers stand at the prompts: a
    generation starts there. -#}
{% macro gpt2_check(network) -%}
    select {{ db_function('check_input') }}(
        case
            when max(step) > 0
                then 'the layers are already past the prompts: the loop starts '
                    'from fresh layers, so run dbt run --select {{ network }}'
        end
    )
    from {{ network_relation(network ~ '_tokens') }}
{%- endmacro %}


{#- The statement that makes the sampled tokens the next frontier. -#}
{% macro gpt2_advance(samples, network) -%}
    {%- set tokens = network_relation(network ~ '_tokens') -%}
    insert into {{ tokens }} (sequence_id, position, token_id, step)
    select samples.sequence_id, samples.position, samples.token_id, newest.step + 1
    from (select max(step) as step from {{ tokens }}) as newest
    inner join {{ tokens }} as tokens using (step)
    inner join {{ samples }} as samples
        on tokens.sequence_id = samples.sequence_id
        and tokens.position + 1 = samples.position
    where samples.finish_reason is null
{%- endmacro %}


{#-
    A SELECT of one row (steps, news): how many steps are still to be made at
    most, 0 when all is done, and what the newest step brought, for a person.
-#}
{% macro gpt2_progress(samples, network) -%}
    {%- set tokens = network_relation(network ~ '_tokens') -%}
    select
        coalesce(max(case
            when samples.finish_reason is null then least(
                prompts.max_new_tokens - 1 - (samples.position - prompt.n),
                {{ hyperparameter(network_source(network, 'config'), 'n_positions') }}
                - samples.position - 1
            )
        end), 0)::integer as steps,
        count(*)::integer as places,
        {# as JSON, so that a line break does not break the line #}
        coalesce(
            (array_agg(to_json(samples.piece) order by samples.sequence_id))[1]::text
            || case
                when count(*) > 1 then format(' (the first of %s)', count(*))
                else ''
            end,
            'nothing to generate'
        ) as news
    from (select max(step) as step from {{ tokens }}) as newest
    inner join {{ tokens }} as tokens using (step)
    inner join {{ samples }} as samples
        on tokens.sequence_id = samples.sequence_id
        and tokens.position + 1 = samples.position
    inner join {{ network_relation(network ~ '_prompts') }} as prompts
        on samples.sequence_id = prompts.sequence_id
    cross join lateral (
        select count(*) as n
        from {{ tokens }} as tokens
        where tokens.sequence_id = samples.sequence_id and tokens.step = 0
    ) as prompt
{%- endmacro %}


{#- How fast it goes, for a person. -#}
{% macro gpt2_pace(seconds, steps, places, steps_left) -%}
    {{- '%.1f tokens/s' | format(places / seconds) -}}
{%- endmacro %}
