{#-
    The sinusoidal embedding of each image's timestep: sines and cosines of the
    timestep at n/2 frequencies from 1 down to 1/10,000.

    frontier   relation: (image_id, timestep, ...)
    config     relation of hyper-parameters: block_out_channels (its first is
               n), flip_sin_to_cos (cosines first), freq_shift
    -> [image, n]

    Vaswani et al. 2017; behaves as diffusers' Timesteps (time_proj).
-#}
{% macro timestep_embedding(frontier, config) -%}
    {{ return(adapter.dispatch('timestep_embedding', 'dbt_nn')(frontier, config)) }}
{%- endmacro %}


{% macro default__timestep_embedding(frontier, config) -%}
with sizes as (
    select
        {{ dbt_nn.hyperparameter(config, 'block_out_channels', 'jsonb') }}[0]::integer as n,
        {{ dbt_nn.hyperparameter(config, 'flip_sin_to_cos', 'boolean') }} as cosine_first,
        {{ dbt_nn.hyperparameter(config, 'freq_shift', 'float8') }} as freq_shift
)

select
    images.image_id,
    (
        select array_agg(
            case
                when element.i >= element.half * 2 then 0
                when (element.i < element.half) = sizes.cosine_first
                    then cos(images.timestep * element.frequency)
                else sin(images.timestep * element.frequency)
            end
            order by element.i
        )
        from (
            select
                i,
                sizes.n / 2 as half,
                exp(
                    -ln(10000) * (i % greatest(sizes.n / 2, 1))
                    / (sizes.n / 2 - sizes.freq_shift)
                ) as frequency
            from generate_series(0, sizes.n - 1) as i
        ) as element
    )::vector as activation
from (select distinct image_id, timestep from {{ frontier }}) as images
cross join sizes
{%- endmacro %}
