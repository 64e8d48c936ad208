{#-
    What the materializations need to know of a text network.
-#}

{#- An expression that tells which sequences the layers are of, a text. -#}
{% macro gpt2_fingerprint(network) -%}
(
    select string_agg(
        prompts.sequence_id || '/' || prompts.completion_id,
        ',' order by prompts.sequence_id
    )
    from {{ network_relation(network ~ '_prompts') }} as prompts
    inner join {{ network_relation(network ~ '_tokens') }} as tokens
        on prompts.sequence_id = tokens.sequence_id and tokens.position = 0
)
{%- endmacro %}


{#- A SELECT that raises an error unless the layers have what is to be sampled
    from. -#}
{% macro gpt2_check(network) -%}
    select {{ db_function('check_input') }}(
        case
            when exists (
                select
                from {{ network_relation(network ~ '_prompts') }} as prompts
                cross join lateral (
                    select max(tokens.position) as position
                    from {{ network_relation(network ~ '_tokens') }} as tokens
                    where tokens.sequence_id = prompts.sequence_id
                ) as newest
                where prompts.finished_at is null
                    and newest.position is not null
                    and not exists (
                        select
                        from {{ network_relation(network ~ '_lm_head') }} as head
                        where head.sequence_id = prompts.sequence_id
                            and head.position = newest.position
                    )
            )
                then 'the layers do not have the newest tokens: run '
                    'dbt run --select {{ network }}'
        end
    )
{%- endmacro %}


{#- Whether the batch is of one text: a scalar expression. -#}
{% macro gpt2_is_alone(network) -%}
    (
        select count(*) = 1
        from {{ network_relation(network ~ '_tokens') }} as tokens
        where tokens.position = 0
    )
{%- endmacro %}


{#- A statement that drops the results of prompts that have changed. -#}
{% macro gpt2_forget(results, network) -%}
    delete from {{ results }} as results
    where not exists (
        select from {{ network_relation(network ~ '_prompts') }} as prompts
        where prompts.sequence_id = results.sequence_id
            and prompts.completion_id = results.completion_id
    )
{%- endmacro %}


{#-
    The body of a function that makes the sampled tokens the next frontier.
    Where no sequence of the batch goes on, the next batch begins; it returns
    whether one did, since then every layer begins anew.
-#}
{% macro gpt2_advance(samples, network) -%}
    {%- set tokens = network_relation(network ~ '_tokens') -%}
    {%- set prompts = network_relation(network ~ '_prompts') -%}
    begin
        insert into {{ tokens }} (sequence_id, position, token_id, step)
        select
            samples.sequence_id,
            samples.position,
            samples.token_id,
            (select max(step) + 1 from {{ tokens }})
        from (
            {{ gpt2_current_sequences(prompts, tokens) }}
        ) as current
        inner join {{ samples }} as samples
            on current.sequence_id = samples.sequence_id
            and current.position + 1 = samples.position
        where samples.finish_reason is null;
        if found then
            return false;
        end if;

        {# what is said to be complete outlives a crash, whatever the setting #}
        perform set_config('synchronous_commit', 'on', true);
        update {{ prompts }} as prompts
        set finished_at = clock_timestamp()
        from {{ tokens }} as tokens
        where prompts.finished_at is null
            and tokens.sequence_id = prompts.sequence_id
            and tokens.position = 0;
        if not exists (
            select from {{ prompts }} as prompts where prompts.finished_at is null
        ) then
            return false;
        end if;

        delete from {{ tokens }};
        insert into {{ tokens }} (sequence_id, position, token_id, step)
        {{ gpt2_tokens(prompts) }};
        insert into {{ tokens }} (sequence_id, position, token_id, step)
        {{ gpt2_tokens_read(prompts, tokens, samples) }};
        return true;
    end
{%- endmacro %}


{#- A SELECT of the batch's sequences and of the newest place that each has. -#}
{% macro gpt2_current_sequences(prompts, tokens) -%}
    select
        prompts.sequence_id,
        prompts.max_new_tokens,
        cardinality(prompts.prompt_token_ids) as prompt_tokens,
        newest.position,
        newest.step
    from {{ prompts }} as prompts
    cross join lateral (
        select
            tokens.position,
            tokens.step
        from {{ tokens }} as tokens
        where tokens.sequence_id = prompts.sequence_id
        order by tokens.position desc
        limit 1
    ) as newest
    where prompts.finished_at is null
{%- endmacro %}


{#-
    A SELECT of one row (steps, places, news): how many steps are still to be
    made at most, 0 when all is done, how many tokens the newest step brought,
    and for a person which.
-#}
{% macro gpt2_progress(samples, network) -%}
    {%- set tokens = network_relation(network ~ '_tokens') -%}
    {%- set prompts = network_relation(network ~ '_prompts') -%}
    {%- set context = hyperparameter(network_source(network, 'config'), 'n_positions') -%}
    with current as (
        select
            current.*,
            current.step = max(current.step) over () as is_new,
            samples.piece,
            samples.finish_reason,
            samples.position as sampled
        from (
            {{ gpt2_current_sequences(prompts, tokens) }}
        ) as current
        left join {{ samples }} as samples
            on current.sequence_id = samples.sequence_id
            and current.position + 1 = samples.position
    ),

    later as (
        select
            sum(batch.prompts) as prompts,
            sum(batch.steps) as steps
        from (
            select
                count(*) as prompts,
                max(greatest(1, least(
                    prompts.max_new_tokens,
                    {{ context }} - cardinality(prompts.prompt_token_ids)
                ))) as steps
            from {{ prompts }} as prompts
            where prompts.finished_at is null
                and not exists (
                    select from {{ tokens }} as tokens
                    where tokens.sequence_id = prompts.sequence_id
                )
            group by prompts.batch
        ) as batch
    )

    select
        (
            coalesce(max(least(
                current.max_new_tokens - 1 - (current.sampled - current.prompt_tokens),
                {{ context }} - current.sampled - 1
            )) filter (where current.finish_reason is null), 0)
            + coalesce(max(later.steps), 0)
        )::integer as steps,
        (count(current.sampled) filter (where current.is_new))::integer as places,
        {# as JSON, so that a line break does not break the line #}
        coalesce(
            (
                array_agg(to_json(current.piece) order by current.sequence_id)
                filter (where current.is_new and current.sampled is not null)
            )[1]::text
            || case
                when count(current.sampled) filter (where current.is_new) > 1 then format(
                    ' (the first of %s)',
                    count(current.sampled) filter (where current.is_new)
                )
                else ''
            end,
            'nothing new to generate'
        )
        || case
            when max(later.prompts) > 0
                then format(', prompts that wait: %s', max(later.prompts))
            else ''
        end as news
    from later
    left join current on true
{%- endmacro %}


{#- How fast it goes, for a person; `steps_left` counts the longest a text may
    become. -#}
{% macro gpt2_pace(seconds, steps, places, steps_left) -%}
    {%- set left = (seconds / steps * steps_left) | round | int -%}
    {{- '%.1f tokens/s, %d:%02d left' | format(
        places / seconds, left // 60, left % 60
    ) -}}
{%- endmacro %}


{#- A SELECT of (n, example): the prompts that have an error. -#}
{% macro gpt2_problems(network) -%}
    select
        count(*) as n,
        min(format('prompt_id %s: %s', prompts.prompt_id, prompts.error)) as example
    from {{ network_relation(network ~ '_prompts') }} as prompts
    where prompts.error is not null
{%- endmacro %}
