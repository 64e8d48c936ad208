{#-
    What the materializations need to know of a text network.
-#}

{#- An expression that tells which sequences the layers are of, a text. -#}
{% macro text_fingerprint(network) -%}
(
    select string_agg(
        prompts.sequence_id || '/' || prompts.completion_id,
        ',' order by prompts.sequence_id
    )
    from {{ dbt_nn.network_relation(network ~ '_prompts') }} as prompts
    inner join {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
        on prompts.sequence_id = tokens.sequence_id and tokens.position = 0
)
{%- endmacro %}


{#- A SELECT that raises an error unless the layers have what is to be sampled
    from. -#}
{% macro text_check(network) -%}
    select {{ dbt_nn.db_function('check_input') }}(
        case
            when exists (
                select
                from {{ dbt_nn.network_relation(network ~ '_prompts') }} as prompts
                cross join lateral (
                    select max(tokens.position) as position
                    from {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
                    where tokens.sequence_id = prompts.sequence_id
                ) as newest
                where prompts.finished_at is null
                    and newest.position is not null
                    and not exists (
                        select
                        from {{ dbt_nn.network_relation(network ~ '_lm_head') }} as head
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
{% macro text_is_alone(network) -%}
    (
        select count(*) = 1
        from {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
        where tokens.position = 0
    )
{%- endmacro %}


{#- Whether the frontier completes a block of keys or values, see attention_blocks(): a
    scalar expression. -#}
{% macro text_completes_blocks(network) -%}
    exists (
        select
        from {{ dbt_nn.network_relation(network ~ '_frontier') }} as places
        where places.position % {{ dbt_nn.value_blocks()[0] }} = {{ dbt_nn.value_blocks()[0] - 1 }}
    )
{%- endmacro %}


{#- A statement that drops the results of prompts that have changed. -#}
{% macro text_forget(results, network) -%}
    delete from {{ results }} as results
    where not exists (
        select from {{ dbt_nn.network_relation(network ~ '_prompts') }} as prompts
        where prompts.sequence_id = results.sequence_id
            and prompts.completion_id = results.completion_id
    )
{%- endmacro %}


{#- The relation of the sequences with their batches. -#}
{% macro text_batches(network) -%}
    {{- dbt_nn.network_relation(network ~ '_prompts') -}}
{%- endmacro %}


{#- A SELECT of the batches that have something left: (batch), several times. -#}
{% macro text_unfinished(network) -%}
    select prompts.batch
    from {{ dbt_nn.text_batches(network) }} as prompts
    where prompts.finished_at is null
{%- endmacro %}


{#- Whether the layers have a batch that is not finished: an expression. -#}
{% macro text_is_begun(network) -%}
    exists (
        select
        from {{ dbt_nn.text_batches(network) }} as prompts
        inner join {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
            using (sequence_id)
        where prompts.finished_at is null
    )
{%- endmacro %}


{#-
    The body of a function that makes the sampled tokens the next frontier.
    Where no sequence of the batch goes on, the next batch begins; it returns
    whether one did, since then every layer begins anew, and NULL where none is left. A prompt with choices goes
    on with a choice that the network has to read: all but its last token, at once.
-#}
{% macro text_advance(samples, network) -%}
    {%- set tokens = dbt_nn.network_relation(network ~ '_tokens') -%}
    {%- set prompts = dbt_nn.network_relation(network ~ '_prompts') -%}
    declare
        next_step constant integer := (select max(step) + 1 from {{ tokens }});
        goes_on boolean;
        is_read boolean;
        was_read boolean;
        next_batch integer;
    begin
        insert into {{ tokens }} (sequence_id, position, token_id, step)
        select
            samples.sequence_id,
            samples.position,
            samples.token_id,
            next_step
        from (
            {{ dbt_nn.text_current_sequences(prompts, tokens) }}
        ) as current
        inner join {{ samples }} as samples
            on current.sequence_id = samples.sequence_id
            and current.position + 1 = samples.position
        where samples.finish_reason is null;
        goes_on := found;

        if exists (
            select from {{ prompts }} as prompts
            where {{ dbt_nn.has_choices_now('prompts', prompts, tokens) | indent(16) }}
        ) then
            delete from {{ tokens }} as tokens
            using {{ prompts }} as prompts
            where {{ dbt_nn.has_choices_now('prompts', prompts, tokens) | indent(16) }}
                and tokens.sequence_id = prompts.sequence_id
                and tokens.position >= cardinality(prompts.prompt_token_ids);
            was_read := found;
            {# the longest first: it may begin with all of another #}
            insert into {{ tokens }} (sequence_id, position, token_id, step)
            select
                choice.sequence_id,
                choice.prompt_tokens + token.i::integer - 1,
                token.id::integer,
                next_step
            from (
                select distinct on (unread.sequence_id) unread.*
                from (
                    {{ dbt_nn.text_choices_to_read(
                        prompts,
                        tokens,
                        dbt_nn.network_relation(network ~ '_choice_tokens'),
                    ) | indent(20) }}
                ) as unread
                order by
                    unread.sequence_id,
                    jsonb_array_length(unread.token_ids) desc,
                    unread.number
            ) as choice
            cross join lateral jsonb_array_elements_text(choice.token_ids)
                with ordinality as token (id, i)
            where token.i < jsonb_array_length(choice.token_ids);
            is_read := found;
            {# a run that was stopped may have left rows, too #}
            if is_read or was_read or not goes_on then
                perform {{ dbt_nn.rewind_function(samples) }}();
            end if;
            goes_on := goes_on or is_read;
        end if;
        if goes_on then
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
        {{ dbt_nn.forget_forms(prompts, network) | indent(8) }};
        next_batch := {{ dbt_nn.take_function(samples) }}();
        if next_batch is null then
            return null;
        end if;

        delete from {{ tokens }};
        insert into {{ tokens }} (sequence_id, position, token_id, step)
        {{ dbt_nn.text_tokens(prompts, 'next_batch') }};
        insert into {{ tokens }} (sequence_id, position, token_id, step)
        {{ dbt_nn.text_tokens_read(prompts, tokens, samples) }};
        return true;
    end
{%- endmacro %}


{#- A SELECT of the batch's sequences and of the newest place that each has. -#}
{% macro text_current_sequences(prompts, tokens) -%}
    select
        prompts.sequence_id,
        prompts.prompt_id,
        prompts.max_new_tokens,
        prompts.choice_token_ids is not null as has_choices,
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
    A SELECT of one row (steps, places, news, pieces): how many steps are still to
    be made at most, 0 when all is done, how many tokens the newest step brought
    or read of choices, for a person which, and all that it brought as JSON:
    {prompt_id: [how many the text had before, piece]}.
-#}
{% macro text_progress(samples, network) -%}
    {%- set tokens = dbt_nn.network_relation(network ~ '_tokens') -%}
    {%- set prompts = dbt_nn.network_relation(network ~ '_prompts') -%}
    {%- set context = dbt_nn.hyperparameter(dbt_nn.network_source(network, 'config'), 'max_position_embeddings') -%}
    {%- set choice_tokens = dbt_nn.network_relation(network ~ '_choice_tokens') -%}
    with unread as (
        select
            coalesce(max(prompt.choices), 0) as steps,
            coalesce(sum(prompt.choices), 0) as choices
        from (
            select count(*) as choices
            from (
                {{ dbt_nn.text_choices_to_read(prompts, tokens, choice_tokens) | indent(16) }}
            ) as choice
            group by choice.sequence_id
        ) as prompt
    ),

    current as (
        select
            current.*,
            current.step = max(current.step) over () as is_new,
            samples.piece,
            samples.finish_reason,
            samples.position as sampled
        from (
            {{ dbt_nn.text_current_sequences(prompts, tokens) }}
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
                max(greatest(
                    1,
                    least(
                        prompts.max_new_tokens,
                        {{ context }} - cardinality(prompts.prompt_token_ids)
                    ),
                    1 + (
                        select count(*)
                        from jsonb_array_elements(prompts.choice_token_ids) as choice
                        where jsonb_array_length(choice) > 1
                    )
                )) as steps
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
            greatest(
                max(least(
                    current.max_new_tokens - 1 - (current.sampled - current.prompt_tokens),
                    {{ context }} - current.sampled - 1
                )) filter (where current.finish_reason is null),
                max(unread.steps)
            )
            + coalesce(max(later.steps), 0)
        )::integer as steps,
        (
            count(current.sampled) filter (where current.is_new)
            + coalesce(
                sum(current.position - current.prompt_tokens + 1)
                filter (where current.is_new and current.has_choices),
                0
            )
        )::integer as places,
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
            case
                when bool_or(current.has_choices)
                    then format('choices to read: %s', max(unread.choices))
            end,
            case
                when max(later.prompts) > 0 then 'no batch now'
                else 'nothing new to generate'
            end
        )
        || case
            when max(later.prompts) > 0
                then format(', prompts that wait: %s', max(later.prompts))
            else ''
        end as news,
        (
            jsonb_object_agg(
                current.prompt_id,
                jsonb_build_array(current.sampled - current.prompt_tokens, current.piece)
            ) filter (where current.is_new and current.sampled is not null)
        )::text as pieces
    from later
    cross join unread
    left join current on true
{%- endmacro %}


{#- How fast it goes, for a person; `steps_left` counts the longest a text may
    become. -#}
{% macro text_pace(seconds, steps, places, steps_left) -%}
    {{- '%.1f tokens/s, %s left' | format(
        places / seconds, dbt_nn.clock_time(seconds / steps * steps_left)
    ) -}}
{%- endmacro %}


{#- A SELECT of (n, example): the prompts that have an error. -#}
{% macro text_problems(network, package) -%}
    select
        count(*) as n,
        min(format('prompt_id %s: %s', prompts.prompt_id, prompts.error)) as example
    from {{ graph.nodes['model.' ~ package ~ '.' ~ network ~ '_prompts'].relation_name }} as prompts
    where prompts.error is not null
{%- endmacro %}
