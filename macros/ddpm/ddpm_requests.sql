{#-
    The images of a run with their options, one row an image.

    requests    none, or a relation: image_id (an integer), and optionally a
                column named like an option (see image_options), which sets it
                for the row
    options     dict of options for all images; batch_size images are drawn
                where no relation is given
    scheduler   the checkpoint's scheduler
    config      the checkpoint's config
    checkpoint  its schema
    -> (image_id, scheduler, num_inference_steps, eta, seed, request, error,
       batch)

    Image n of a run has the seed `seed + n - 1` unless its row says otherwise,
    so that each image of a batch can be drawn again alone. `request` is a digest
    of all that decides the image, the checkpoint included. A batch is of images
    with about as many steps, so many as fit the memory.

    A row that cannot be drawn says why in `error`, and has no options. What
    concerns all rows (an option of all, an image_id that is no whole number or
    there twice) raises an error, before anything of an earlier run is replaced.
-#}
{% macro ddpm_requests(requests, options, scheduler, config, checkpoint) -%}
    {%- for name in options if name not in image_options() -%}
        {{ exceptions.raise_compiler_error(
            "unknown image option '" ~ name ~ "'; known are "
            ~ image_options() | join(', ')
        ) }}
    {%- endfor -%}
{# materialized, so that no cast of a bad value is folded before its check #}
with options as materialized (
    select jsonb_strip_nulls({{ json_literal(options) }}) as options
),

checked_options as materialized (
    select options
    from options
    where {{ db_function('check_input') }}(
        'the image options: ' || case
            {{ image_option_problems(image_options()) }}
        end
    )
),

requests as (
    {%- if requests %}
    select
        named.image_id,
        row_number() over (order by named.number, named.image_id) as number,
        count(*) over (partition by coalesce(named.number::text, named.image_id))
            as namesakes,
        options,
        jsonb_strip_nulls(named.fields) as fields
    from (
        select
            given.image_id,
            given.fields,
            case
                when pg_input_is_valid(given.image_id, 'integer')
                    then given.image_id::integer
            end as number
        from (
            select
                to_jsonb(requests) as fields,
                to_jsonb(requests) ->> 'image_id' as image_id
            from {{ requests }} as requests
        ) as given
    ) as named
    cross join checked_options
    {%- else %}
    select
        number::text as image_id,
        number,
        1 as namesakes,
        options,
        '{}'::jsonb as fields
    from checked_options
    cross join generate_series(
        1, coalesce((options ->> 'batch_size')::integer, 1)
    ) as number
    {%- endif %}
),

{# The checkpoint's own scheduler, and its pipeline's number of steps. #}
completed as materialized (
    select
        requests.image_id,
        requests.number,
        requests.namesakes,
        requests.fields,
        trained.steps as trained_steps,
        jsonb_build_object(
            'scheduler', chosen.scheduler,
            'num_inference_steps', least(
                case chosen.scheduler when 'ddpm' then 1000 else 50 end, trained.steps
            ),
            'seed', 0
        ) || requests.options || requests.fields as options
    from requests
    cross join (
        select
            {{ hyperparameter(scheduler, 'num_train_timesteps') }} as steps,
            lower(left({{ hyperparameter(scheduler, '_class_name', 'jsonb') }} #>> '{}', 4))
                as scheduler
    ) as trained
    cross join lateral (
        select coalesce(
            requests.fields ->> 'scheduler',
            requests.options ->> 'scheduler',
            trained.scheduler
        ) as scheduler
    ) as chosen
),

checked as materialized (
    select
        completed.*,
        case
            {{ image_option_problems(image_options().keys() | reject('eq', 'batch_size') | list) }}
            when (options ->> 'num_inference_steps')::integer > trained_steps
                then format(
                    'num_inference_steps must be at most %s, the steps that the '
                    'network was trained with, not %s',
                    trained_steps, options -> 'num_inference_steps'
                )
            when options ->> 'scheduler' = 'ddpm' and options ? 'eta'
                then 'eta is an option of the ddim scheduler, not of ddpm'
        end as error
    from completed
    where {{ db_function('check_input') }}(
        format('image_id %s: ', image_id) || case
            when image_id is null then 'image_id is NULL'
            when not pg_input_is_valid(image_id, 'integer')
                then 'image_id must be a whole number'
            when namesakes > 1 then format('is there %s times', namesakes)
        end
    )
),

{# of a row with an error none: its own may not have their types #}
accepted as materialized (
    select
        checked.*,
        case when error is null then options else '{}' end as valid_options
    from checked
    {%- if not requests %}
    where {{ db_function('check_input') }}('the image options: ' || error)
    {%- endif %}
),

typed as (
    select
        image_id::integer as image_id,
        valid_options ->> 'scheduler' as scheduler,
        (valid_options ->> 'num_inference_steps')::integer as num_inference_steps,
        case
            when error is null then coalesce((valid_options ->> 'eta')::float8, 0)
        end as eta,
        (valid_options ->> 'seed')::bigint
        + case when fields ? 'seed' then 0 else number - 1 end as seed,
        error
    from accepted
)

select
    typed.image_id,
    typed.scheduler,
    typed.num_inference_steps,
    typed.eta,
    typed.seed,
    md5(concat_ws(
        '/',
        {{ checkpoint_digest(checkpoint) | indent(8) }},
        scheduler, num_inference_steps, eta, seed
    ))::uuid as request,
    typed.error,
    case
        when typed.error is null then ceil(
            row_number() over (
                partition by typed.error is null
                order by typed.num_inference_steps, typed.image_id
            )::float8 / greatest(1, floor(
                {{ batch_memory(checkpoint) }} / {{ ddpm_bytes_per_image(config) }}
            ))
        )
    end::integer as batch
from typed
{%- endmacro %}


{#-
    What all layers keep of an image, in bytes, roughly: at each level of the UNet
    its activations of c channels, in ResNets, attention and skip connections, with
    a quarter of each page free and 80 bytes for a row and its key.
-#}
{% macro ddpm_bytes_per_image(config) -%}
(
    select sum(
        size.height * size.width / 4 ^ (level.number - 1)
        * (5 * level.channels::integer + 80)
        * (
            (5 + attention.layers) * block.resnets
            + (8 + attention.layers) * (block.resnets + 1) + 3
        )
    )
    from (
        select {{ hyperparameter(config, 'layers_per_block') }} as resnets
    ) as block
    cross join ({{ ddpm_sample_size(config) | indent(4) }}) as size
    cross join jsonb_array_elements_text(
        {{ hyperparameter(config, 'block_out_channels', 'jsonb') | indent(8) }}
    ) with ordinality as level (channels, number)
    cross join lateral (
        select case
            when {{ hyperparameter(config, 'down_block_types', 'jsonb') | indent(12) }}
                ->> (level.number - 1)::integer like 'Attn%'
                then 6
            else 0
        end as layers
    ) as attention
)
{%- endmacro %}


{#- The cases of a CASE that say what is wrong with the named options. -#}
{% macro image_option_problems(names) -%}
    {%- for name in names %}
        {%- set option = image_options()[name] %}
            when not pg_input_is_valid(options ->> '{{ name }}', '{{ option.type }}')
                then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
        {%- if option.valid %}
            when not ({{ option.valid | replace('{}', "(options ->> '" ~ name ~ "')::" ~ option.type) }})
                then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
        {%- endif %}
    {%- endfor %}
{%- endmacro %}


{#-
    The options of an image, named as diffusers' pipelines and schedulers name
    them; the defaults are those of DDPMPipeline (1,000 steps) and DDIMPipeline
    (50). `valid` is a condition on the value {}.
-#}
{% macro image_options() -%}
    {{ return({
        'scheduler': {
            'type': 'text', 'valid': "{} in ('ddpm', 'ddim')", 'must_be': 'ddpm or ddim',
        },
        'num_inference_steps': {
            'type': 'integer', 'valid': '{} >= 1', 'must_be': 'a whole number, 1 or more',
        },
        'eta': {
            'type': 'float8', 'valid': '{} >= 0 and {} <= 1',
            'must_be': 'a number from 0 (DDIM) to 1',
        },
        'seed': {'type': 'bigint', 'must_be': 'a whole number'},
        'batch_size': {
            'type': 'integer', 'valid': '{} >= 1', 'must_be': 'a whole number, 1 or more',
        },
    }) }}
{%- endmacro %}
