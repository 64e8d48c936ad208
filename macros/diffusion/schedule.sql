{#-
    The noise schedule that the network was trained with.

    scheduler   the checkpoint's scheduler
    -> (timestep, beta, alpha_cumprod), timestep 0 with the least noise: a
       picture at timestep t is sqrt(alpha_cumprod) of itself and
       sqrt(1 - alpha_cumprod) of noise

    Ho et al. 2020 (linear), Rombach et al. 2021 (scaled_linear), Nichol and
    Dhariwal 2021 (squaredcos_cap_v2); behaves as the betas and alphas_cumprod
    of diffusers' schedulers, which keep betas in float32.
-#}
{% macro diffusion_noise_schedule(scheduler) -%}
with trained as (
    select
        {{ dbt_nn.hyperparameter(scheduler, 'num_train_timesteps') }} as steps,
        {{ dbt_nn.hyperparameter(scheduler, 'beta_start', 'float8') }} as beta_start,
        {{ dbt_nn.hyperparameter(scheduler, 'beta_end', 'float8') }} as beta_end,
        {{ dbt_nn.hyperparameter(scheduler, 'beta_schedule', 'jsonb') }} #>> '{}' as beta_schedule
),

betas as (
    select
        t as timestep,
        (case beta_schedule
            when 'linear'
                then beta_start + (beta_end - beta_start) * t / greatest(steps - 1, 1)
            when 'scaled_linear'
                then (
                    sqrt(beta_start)
                    + (sqrt(beta_end) - sqrt(beta_start)) * t / greatest(steps - 1, 1)
                ) ^ 2
            when 'squaredcos_cap_v2'
                then least(
                    1
                    - cos(((t + 1.0::float8) / steps + 0.008) / 1.008 * pi() / 2) ^ 2
                    / cos((t::float8 / steps + 0.008) / 1.008 * pi() / 2) ^ 2,
                    0.999
                )
        end)::real::float8 as beta
    from trained
    cross join generate_series(0, steps - 1) as t
)

select
    timestep,
    beta,
    exp(sum(ln(1 - beta)) over (order by timestep)) as alpha_cumprod
from betas
{%- endmacro %}


{#-
    The steps of each image, from pure noise to the picture, and what each step
    mixes:

        x[t-1] = original_weight * x0 + sample_weight * x[t]
                 + epsilon_weight * epsilon + sigma * new noise

    where x0 is the picture that the network predicts and epsilon the noise.

    requests         relation made by diffusion_requests()
    noise_schedule   relation made by diffusion_noise_schedule()
    scheduler        the checkpoint's scheduler
    -> (image_id, step from 0, timestep, previous_timestep (-1: the picture),
       alpha_cumprod, previous_alpha_cumprod, original_weight, sample_weight,
       epsilon_weight, sigma)

    DDPM: Ho et al. 2020, formula 7; DDIM: Song et al. 2020, formulas 12 and
    16. Behaves as set_timesteps() and the coefficients in step() of diffusers'
    DDPMScheduler and DDIMScheduler.
-#}
{% macro diffusion_timesteps(requests, noise_schedule, scheduler) -%}
with trained as (
    select
        {{ dbt_nn.hyperparameter(scheduler, 'num_train_timesteps') }} as t,
        {{ dbt_nn.hyperparameter(scheduler, 'timestep_spacing', 'jsonb') }} #>> '{}' as spacing,
        {{ dbt_nn.hyperparameter(scheduler, 'steps_offset') }} as steps_offset,
        coalesce(
            {{ dbt_nn.hyperparameter(scheduler, 'set_alpha_to_one', 'boolean') }}, true
        ) as set_alpha_to_one,
        coalesce(
            {{ dbt_nn.hyperparameter(scheduler, 'variance_type', 'jsonb') }} #>> '{}',
            'fixed_small'
        ) as variance_type
),

timesteps as (
    select
        requests.image_id,
        requests.scheduler,
        requests.eta,
        requests.num_inference_steps as n,
        step,
        trained.*,
        case trained.spacing
            when 'leading'
                then (requests.num_inference_steps - 1 - step)
                    * (trained.t / requests.num_inference_steps)
                    + trained.steps_offset
            when 'trailing'
                then round(
                    {# the step as np.arange rounds it, which decides at halves #}
                    trained.t + step * (
                        (trained.t - trained.t::float8 / requests.num_inference_steps)
                        - trained.t
                    )
                )::integer - 1
            when 'linspace'
                then round(
                    (requests.num_inference_steps - 1 - step)
                    * ((trained.t - 1.0::float8) / greatest(requests.num_inference_steps - 1, 1))
                )::integer
        end as timestep
    from {{ requests }} as requests
    cross join trained
    cross join generate_series(0, requests.num_inference_steps - 1) as step
),

previous as (
    select
        timesteps.*,
        case scheduler
            when 'ddim' then greatest(timestep - t / n, -1)
            else coalesce(
                lead(timestep) over (partition by image_id order by step), -1
            )
        end as previous_timestep
    from timesteps
),

alphas as (
    select
        previous.*,
        now_.alpha_cumprod as a,
        case
            when before_.alpha_cumprod is not null then before_.alpha_cumprod
            when previous.scheduler = 'ddim' and not previous.set_alpha_to_one
                then first_.alpha_cumprod
            else 1
        end as a_previous
    from previous
    left join {{ noise_schedule }} as now_
        on previous.timestep = now_.timestep
    left join {{ noise_schedule }} as before_
        on previous.previous_timestep = before_.timestep
    inner join {{ noise_schedule }} as first_
        on first_.timestep = 0
    where {{ dbt_nn.db_function('check_input') }}(
        case
            when now_.timestep is null then format(
                'image_id %s: num_inference_steps = %s with the scheduler''s '
                'steps_offset of %s starts at timestep %s, but the network was '
                'trained for 0 to %s: choose fewer steps',
                image_id, n, steps_offset, previous.timestep, t - 1
            )
        end
    )
),

variances as (
    select
        alphas.*,
        (1 - a_previous) / (1 - a) * (1 - a / a_previous) as variance
    from alphas
),

sigmas as (
    select
        variances.*,
        case
            when scheduler = 'ddim' then eta * sqrt(variance)
            when timestep = 0 then 0
            when variance_type = 'fixed_large' then sqrt(1 - a / a_previous)
            else sqrt(greatest(variance, 1e-20))
        end as sigma
    from variances
)

select
    image_id,
    step,
    timestep,
    previous_timestep,
    a as alpha_cumprod,
    a_previous as previous_alpha_cumprod,
    case scheduler
        when 'ddim' then sqrt(a_previous)
        else sqrt(a_previous) * (1 - a / a_previous) / (1 - a)
    end as original_weight,
    case scheduler
        when 'ddim' then 0
        else sqrt(a / a_previous) * (1 - a_previous) / (1 - a)
    end as sample_weight,
    case scheduler
        when 'ddim' then sqrt(greatest(1 - a_previous - sigma ^ 2, 0))
        else 0
    end as epsilon_weight,
    sigma
from sigmas
order by image_id, step
{%- endmacro %}
