{#-
    The noise that each image starts from, step 0; the loop appends each less
    noisy sample.

    requests   relation made by ddpm_requests()
    config     the checkpoint's config: in_channels, sample_size
    samples    the table itself where it is there already: an image whose
               request is unchanged is not started again, none otherwise
    -> (image_id, step, y, x, activation vector(in_channels), request)

    Standard normal numbers, functions of (seed, step, y, x, channel) alone.
-#}
{% macro ddpm_samples(requests, config, samples=none) -%}
select
    requests.image_id,
    0 as step,
    y,
    x,
    {{ db_function('gaussian_noise') }}(
        requests.seed, 0, y, x, size.channels
    ) as activation,
    requests.request
from {{ requests }} as requests
cross join (
    select
        {{ hyperparameter(config, 'in_channels') }} as channels,
        case jsonb_typeof(sample_size)
            when 'array' then sample_size[0]::integer
            else sample_size::integer
        end as height,
        case jsonb_typeof(sample_size)
            when 'array' then sample_size[1]::integer
            else sample_size::integer
        end as width
    from (
        select {{ hyperparameter(config, 'sample_size', 'jsonb') }} as sample_size
    ) as config
) as size
cross join generate_series(0, size.height - 1) as y
cross join generate_series(0, size.width - 1) as x
{%- if samples %}
where not exists (
    select from {{ samples }} as samples
    where samples.image_id = requests.image_id
)
{%- endif %}
order by requests.image_id, y, x
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
    The samples that the network denoises now: those of each image's newest
    step, while any image has steps left; else those of everyone's last step,
    so that finished images can be looked at layer by layer.

    samples     relation made by ddpm_samples()
    requests    relation made by ddpm_requests()
    timesteps   relation made by ddpm_timesteps()
    config      the checkpoint's config: center_input_sample
    -> (image_id, step, timestep, y, x, activation vector(in_channels): what the
       network reads, sample vector(in_channels))
-#}
{% macro ddpm_frontier(samples, requests, timesteps, config) -%}
with newest as (
    select
        requests.image_id,
        requests.num_inference_steps as steps,
        (
            select max(samples.step) from {{ samples }} as samples
            where samples.image_id = requests.image_id
        ) as step
    from {{ requests }} as requests
),

active as (
    select
        image_id,
        least(step, steps - 1) as step
    from newest
    where step < steps or not exists (
        select from newest as other where other.step < other.steps
    )
)

select
    samples.image_id,
    samples.step,
    timesteps.timestep,
    samples.y,
    samples.x,
    case
        when {{ hyperparameter(config, 'center_input_sample', 'boolean') }}
            then samples.activation + samples.activation
                - {{ broadcast('1', 'vector_dims(samples.activation)') }}
        else samples.activation
    end as activation,
    samples.activation as sample
from active
inner join {{ samples }} as samples using (image_id, step)
inner join {{ timesteps }} as timesteps using (image_id, step)
{%- endmacro %}
