{#-
    The noise that each image starts from, step 0; the loop appends each less
    noisy sample.

    requests   relation made by diffusion_requests()
    config     the checkpoint's config: in_channels, sample_size
    samples    the table itself where it is there already: an image whose
               request is unchanged is not started again, none otherwise
    -> (image_id, step, y, x, activation vector(in_channels), request,
       pred_original_sample vector(in_channels): the loop's, see diffusion_denoise())

    Standard normal numbers, functions of (seed, step, y, x, channel) alone.
-#}
{% macro diffusion_samples(requests, config, samples=none) -%}
select
    requests.image_id,
    0 as step,
    y,
    x,
    {{ dbt_nn.db_function('gaussian_noise') }}(
        requests.seed, 0, y, x, channels.n
    ) as activation,
    requests.request,
    null::vector as pred_original_sample
from {{ requests }} as requests
cross join (
    {{ dbt_nn.diffusion_sample_size(config) }}
) as size
cross join (
    select {{ dbt_nn.hyperparameter(config, 'in_channels') }} as n
) as channels
cross join generate_series(0, size.height - 1) as y
cross join generate_series(0, size.width - 1) as x
where requests.error is null
{%- if samples %}
    and not exists (
        select from {{ samples }} as samples
        where samples.image_id = requests.image_id
    )
{%- endif %}
order by requests.image_id, y, x
{%- endmacro %}


{#- A SELECT of the (height, width) that the network was trained for. -#}
{% macro diffusion_sample_size(config) -%}
    select
        case jsonb_typeof(sample_size)
            when 'array' then sample_size[0]::integer
            else sample_size::integer
        end as height,
        case jsonb_typeof(sample_size)
            when 'array' then sample_size[1]::integer
            else sample_size::integer
        end as width
    from (
        select {{ dbt_nn.hyperparameter(config, 'sample_size', 'jsonb') }} as sample_size
    ) as config
{%- endmacro %}


{#- A statement that forgets images which were not asked for, or otherwise. -#}
{% macro forget_other_images(samples, requests) -%}
    delete from {{ samples }} as samples
    where not exists (
        select from {{ requests }} as requests
        where requests.image_id = samples.image_id
            and requests.request = samples.request
    )
{%- endmacro %}


{#-
    The samples that the network denoises now: those of the newest step of each
    image of the session's batch, see session.sql, or of the first that has steps left;
    where none has, those of the
    last batch's last step, so that they can be looked at layer by layer.

    samples     relation made by diffusion_samples()
    requests    relation made by diffusion_requests()
    timesteps   relation made by diffusion_timesteps()
    config      the checkpoint's config: center_input_sample
    -> (image_id, step, timestep, y, x, activation vector(in_channels): what the
       network reads, sample vector(in_channels))
-#}
{% macro diffusion_frontier(samples, requests, timesteps, config) -%}
with newest as (
    select
        requests.image_id,
        requests.batch,
        requests.num_inference_steps as steps,
        (
            select max(samples.step) from {{ samples }} as samples
            where samples.image_id = requests.image_id
        ) as step
    from {{ requests }} as requests
    where requests.error is null
),

current as (
    select
        newest.batch,
        bool_or(newest.step < newest.steps) as has_steps
    from newest
    where newest.batch = (
        select coalesce(
            {{ dbt_nn.own_batch() }}, min(batch) filter (where step < steps), max(batch)
        )
        from newest
    )
    group by newest.batch
),

active as (
    select
        newest.image_id,
        least(newest.step, newest.steps - 1) as step
    from newest
    inner join current using (batch)
    where newest.step < newest.steps or not current.has_steps
)

select
    samples.image_id,
    samples.step,
    timesteps.timestep,
    samples.y,
    samples.x,
    case
        when {{ dbt_nn.hyperparameter(config, 'center_input_sample', 'boolean') }}
            then samples.activation + samples.activation
                - {{ dbt_nn.broadcast('1', 'vector_dims(samples.activation)') }}
        else samples.activation
    end as activation,
    samples.activation as sample
from active
inner join {{ samples }} as samples using (image_id, step)
inner join {{ timesteps }} as timesteps using (image_id, step)
{%- endmacro %}
