{#-
    What the generation materialization needs to know of an image network.
-#}

{#- A SELECT that raises an error unless the layers stand at the frontier. -#}
{% macro diffusion_check(network) -%}
    select {{ dbt_nn.db_function('check_input') }}(
        case
            when exists (
                select
                from {{ dbt_nn.network_relation(network ~ '_frontier') }} as frontier
                left join {{ dbt_nn.network_relation(network ~ '_conv_out') }} as output
                    using (image_id, y, x)
                where output.image_id is null
            )
                then 'the layers do not have the newest images: run '
                    'dbt run --select {{ network }}'
        end
    )
{%- endmacro %}


{#- The relation of the images with their batches. -#}
{% macro diffusion_batches(network) -%}
    {{- dbt_nn.network_relation(network ~ '_requests') -}}
{%- endmacro %}


{#- A SELECT of the batches that have steps left: (batch), several times. -#}
{% macro diffusion_unfinished(network) -%}
    select requests.batch
    from {{ dbt_nn.diffusion_batches(network) }} as requests
    where (
        select max(samples.step)
        from {{ dbt_nn.network_relation(network ~ '_samples') }} as samples
        where samples.image_id = requests.image_id
    ) < requests.num_inference_steps
{%- endmacro %}


{#- Whether the layers have the first batch: always, its first step. -#}
{% macro diffusion_is_begun(network) -%}
    true
{%- endmacro %}


{#- The body of a function that makes the denoised samples the next frontier; where an
    image's batch is complete, the next batch, and it returns NULL where none is left.
    The layers begin anew where an image is done, so that others are next, and at
    every tenth step: old versions of rows which a page has no room for, or which
    another session still sees, take no more than ten times a step's. -#}
{% macro diffusion_advance(denoised, network) -%}
    begin
        insert into {{ dbt_nn.network_relation(network ~ '_samples') }}
            (image_id, step, y, x, activation, request, pred_original_sample)
        select
            denoised.image_id,
            denoised.step,
            denoised.y,
            denoised.x,
            denoised.activation,
            requests.request,
            denoised.pred_original_sample
        from {{ denoised }} as denoised
        inner join {{ dbt_nn.network_relation(network ~ '_requests') }} as requests
            using (image_id)
        on conflict do nothing;
        if not exists (
            select
            from ({{ dbt_nn.diffusion_unfinished(network) }}) as unfinished
            where unfinished.batch = coalesce({{ dbt_nn.own_batch() }}, unfinished.batch)
        ) then
            return case when {{ dbt_nn.take_function(denoised) }}() is not null then true end;
        end if;
        return exists (
            select
            from {{ denoised }} as denoised
            inner join {{ dbt_nn.network_relation(network ~ '_requests') }} as requests
                using (image_id)
            where denoised.step >= requests.num_inference_steps
                or denoised.step % 10 = 0
        );
    end
{%- endmacro %}


{#-
    A SELECT of one row (steps, places, news, pieces): how many steps are still to
    be made, of this batch and the later ones, the images at the frontier, and what
    the newest step brought; `pieces` is of texts.
-#}
{% macro diffusion_progress(denoised, network) -%}
    select
        (
            coalesce(max(requests.num_inference_steps - newest.step), 0)
            + coalesce(max(later.steps), 0)
        )::integer as steps,
        count(newest.image_id)::integer as places,
        case
            when count(newest.image_id) = 0 then 'nothing new to draw'
            else format(
                'step %s of %s, timestep %s%s',
                min(newest.step),
                min(requests.num_inference_steps),
                min(timesteps.timestep),
                case when count(*) > 1 then format(', %s images', count(*)) else '' end
            )
        end || case
            when max(later.images) > 0
                then format(', images that wait: %s', max(later.images))
            else ''
        end as news,
        null as pieces
    from (
        select
            sum(batch.steps) as steps,
            sum(batch.images) as images
        from (
            select
                max(requests.num_inference_steps - newest.step) as steps,
                count(*) as images
            from {{ dbt_nn.network_relation(network ~ '_requests') }} as requests
            cross join lateral (
                select max(samples.step) as step
                from {{ dbt_nn.network_relation(network ~ '_samples') }} as samples
                where samples.image_id = requests.image_id
            ) as newest
            where newest.step < requests.num_inference_steps
                and not exists (
                    select from {{ denoised }} as denoised
                    where denoised.image_id = requests.image_id
                )
            group by requests.batch
        ) as batch
    ) as later
    left join (
        select distinct image_id, step
        from {{ denoised }}
    ) as newest on true
    left join {{ dbt_nn.network_relation(network ~ '_requests') }} as requests
        on newest.image_id = requests.image_id
    left join {{ dbt_nn.network_relation(network ~ '_timesteps') }} as timesteps
        on newest.image_id = timesteps.image_id
        and newest.step = timesteps.step + 1
{%- endmacro %}


{#- How fast it goes, for a person. -#}
{% macro diffusion_pace(seconds, steps, places, steps_left) -%}
    {{- '%.2f s a step, %s left' | format(
        seconds / steps, dbt_nn.clock_time(seconds / steps * steps_left)
    ) -}}
{%- endmacro %}


{#- A SELECT of (n, example): the images that have an error. -#}
{% macro diffusion_problems(network, package) -%}
    select
        count(*) as n,
        min(format('image_id %s: %s', requests.image_id, requests.error)) as example
    from {{ graph.nodes['model.' ~ package ~ '.' ~ network ~ '_requests'].relation_name }} as requests
    where requests.error is not null
{%- endmacro %}
