{#-
    The angles by which rotary_linear() turns queries and keys, as their cosines and
    sines: at position p, pair i of a head's d / 2 pairs turns by p times its frequency.

    tokens      [places]   relation: (sequence_id, position, step)
    rope        SQL expression, jsonb: config.json's rope_parameters, as
                dbt_nn/networks/rope.py completes them
    head_size   SQL expression: d
    -> [places, 2 d]: the cosines of all pairs, twice, and their sines, twice

    Su et al. 2021, "RoFormer"; behaves as transformers' LlamaRotaryEmbedding, with the
    rope types of its modeling_rope_utils.py. Angles are rounded to float32 as they are
    there. `dynamic` goes by the length that a text has when a place is computed: for
    all places of a prompt by the prompt's, as in generate() with a cache.
-#}
{% macro rotary_embedding(tokens, rope, head_size) -%}
{#- The pair at which a wave turns `beta` times in the original context. -#}
{%- set turning_pair = "given.size * ln(given.length / (%s * 2 * pi())) / (2 * ln(given.theta))" -%}
with given as (
    select
        given.size,
        {%- for name, column in {
            'rope_theta': 'theta',
            'factor': 'factor',
            'original_max_position_embeddings': 'length',
            'low_freq_factor': 'low_freq_factor',
            'high_freq_factor': 'high_freq_factor',
            'beta_fast': 'beta_fast',
            'beta_slow': 'beta_slow',
            'attention_factor': 'attention_factor',
        }.items() %}
        (given.rope ->> '{{ name }}')::float8 as {{ column }},
        {%- endfor %}
        (given.rope ->> 'truncate')::boolean as truncates,
        given.rope ->> 'rope_type' as type
    from (select {{ rope }} as rope, {{ head_size }} as size) as given
),

rope as (
    select
        given.*,
        case when given.truncates then floor(ramp.low) else ramp.low end as ramp_low,
        case when given.truncates then ceil(ramp.high) else ramp.high end as ramp_high
    from given
    cross join lateral (
        select
            {{ turning_pair | format('given.beta_fast') }} as low,
            {{ turning_pair | format('given.beta_slow') }} as high
    ) as ramp
),

pairs as (
    select
        {{ dbt_nn.place('tokens') }},
        pair.i,
        case
            when rope.type = 'dynamic' then rope.theta * (
                rope.factor * greatest(
                    max(tokens.position) over (
                        partition by tokens.sequence_id, tokens.step
                    ) + 1,
                    rope.length
                ) / rope.length - (rope.factor - 1)
            ) ^ (rope.size / (rope.size - 2.0))
            else rope.theta
        end ^ (-2.0 * pair.i / rope.size) as frequency
    from {{ tokens }} as tokens
    cross join rope
    cross join generate_series(0, rope.size / 2 - 1) as pair (i)
),

angles as (
    select
        {{ dbt_nn.place('pairs') }},
        pairs.i,
        pairs.position::real * (
            pairs.frequency * case rope.type
                when 'linear' then 1 / rope.factor
                when 'llama3' then part.kept + (1 - part.kept) / rope.factor
                when 'yarn' then 1 - part.scaled + part.scaled / rope.factor
                else 1
            end
        )::real as angle,
        coalesce(rope.attention_factor, 1) as scale
    from pairs
    cross join rope
    cross join lateral (
        select
            least(greatest(
                (rope.length * pairs.frequency / (2 * pi()) - rope.low_freq_factor)
                / (rope.high_freq_factor - rope.low_freq_factor),
                0
            ), 1) as kept,
            least(greatest(
                (pairs.i - greatest(rope.ramp_low, 0)) / nullif(
                    least(rope.ramp_high, rope.size - 1) - greatest(rope.ramp_low, 0), 0
                ),
                0
            ), 1) as scaled
    ) as part
)

select
    {{ dbt_nn.place('angle') }},
    angle.cos || angle.cos || angle.sin || angle.sin as activation
from (
    select
        {{ dbt_nn.place('angles') }},
        {{ dbt_nn.vector_of('cos(angles.angle) * angles.scale', by='angles.i') }} as cos,
        {{ dbt_nn.vector_of('sin(angles.angle) * angles.scale', by='angles.i') }} as sin
    from angles
    group by {{ dbt_nn.place('angles') }}
) as angle
{%- endmacro %}
