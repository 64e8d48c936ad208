{#-
    The sampler: the frontier's images, one step less noisy.

    model_output   relation of the last layer, [image, h, w, channels]
    frontier       relation made by diffusion_frontier()
    requests       relation made by diffusion_requests()
    timesteps      relation made by diffusion_timesteps()
    scheduler      the checkpoint's scheduler: prediction_type, clip_sample,
                   clip_sample_range
    -> (image_id, step, y, x, activation vector(channels): the next sample,
       pred_original_sample vector(channels): the picture that is predicted)

    In float8. Behaves as step() of diffusers' DDPMScheduler and DDIMScheduler.
-#}
{% macro diffusion_denoise(model_output, frontier, requests, timesteps, scheduler) -%}
with options as (
    select
        {{ dbt_nn.hyperparameter(scheduler, 'prediction_type', 'jsonb') }} #>> '{}' as prediction_type,
        case
            when {{ dbt_nn.hyperparameter(scheduler, 'clip_sample', 'boolean') }}
                then {{ dbt_nn.hyperparameter(scheduler, 'clip_sample_range', 'float8') }}
            else 'infinity'
        end as bound
),

steps as (
    select
        frontier.image_id,
        frontier.step + 1 as step,
        frontier.y,
        frontier.x,
        frontier.sample::real[] as samples,
        output.activation::real[] as outputs,
        case
            when timesteps.sigma > 0 then {{ dbt_nn.db_function('gaussian_noise') }}(
                (
                    select requests.seed
                    from {{ requests }} as requests
                    where requests.image_id = frontier.image_id
                ),
                frontier.step + 1,
                frontier.y,
                frontier.x,
                vector_dims(frontier.sample)
            )::real[]
        end as noises,
        sqrt(timesteps.alpha_cumprod) as signal,
        sqrt(1 - timesteps.alpha_cumprod) as noise,
        timesteps.original_weight,
        timesteps.sample_weight,
        timesteps.epsilon_weight,
        timesteps.sigma,
        options.prediction_type,
        options.bound
    from {{ frontier }} as frontier
    inner join {{ timesteps }} as timesteps using (image_id, step)
    cross join {{ dbt_nn.at_place(
        model_output, 'output', 'frontier', ['image_id', 'y', 'x']
    ) }}
    cross join options
)

select
    steps.image_id,
    steps.step,
    steps.y,
    steps.x,
    pixel.activation,
    pixel.pred_original_sample
from steps
cross join lateral (
    select
        array_agg(
            steps.original_weight * clipped.x0
            + steps.sample_weight * clipped.sample
            + steps.epsilon_weight * clipped.epsilon
            + steps.sigma * coalesce(clipped.new_noise, 0)
            order by clipped.channel
        )::vector as activation,
        array_agg(clipped.x0 order by clipped.channel)::vector as pred_original_sample
    from (
        select
            predicted.*,
            greatest(least(predicted.original, steps.bound), -steps.bound) as x0
        from (
            select
                element.*,
                case steps.prediction_type
                    when 'epsilon'
                        then (element.sample - steps.noise * element.output) / steps.signal
                    when 'sample' then element.output
                    when 'v_prediction'
                        then steps.signal * element.sample - steps.noise * element.output
                end as original,
                case steps.prediction_type
                    when 'epsilon' then element.output
                    when 'sample'
                        then (element.sample - steps.signal * element.output) / steps.noise
                    when 'v_prediction'
                        then steps.signal * element.output + steps.noise * element.sample
                end as epsilon
            from unnest(steps.samples, steps.outputs, steps.noises)
                with ordinality as element (sample, output, new_noise, channel)
        ) as predicted
    ) as clipped
) as pixel
{%- endmacro %}
