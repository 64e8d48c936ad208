{#-
    The images of a run with their options, one row an image.

    requests    none, or a relation: image_id (an integer), and optionally a
                column named like an option (see image_options), which sets it
                for the row
    options     of all images, see run_options; batch_size images are drawn where
                no relation is given
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
    concerns all rows (an option of all, a column with nearly the name of an option,
    an image_id that is no whole number or there twice) raises an error, before
    anything of an earlier run is replaced.
-#}
{% macro diffusion_requests(requests, options, scheduler, config, checkpoint) -%}
    {%- do dbt_nn.check_settings() -%}
    {%- do dbt_nn.refuse_interventions() -%}
    {%- set names = dbt_nn.image_options() | list -%}
    {%- set of_a_row = names | reject('eq', 'batch_size') | list -%}
{# materialized, so that no cast of a bad value is folded before its check #}
with options as materialized (
    {{ dbt_nn.run_options(options, names, 'image') | indent(4) }}
),

checked_options as materialized (
    select options
    from options
    where {{ dbt_nn.db_function('check_input') }}(
        'the image options: ' || case
            {{ dbt_nn.image_option_problems(names) }}
        end
    )
),

{%- if requests %}

{# an alias that is the name of no column #}
given as materialized (
    select
        to_jsonb(dbt_nn_row) as fields,
        pg_typeof(dbt_nn_row) as row_type
    from {{ dbt_nn.sampled(requests, 'dbt_nn_row') }}
),

given_columns as materialized (
    {{ dbt_nn.given_columns('given') | indent }}
),

relation as materialized (
    select {{ dbt_nn.misspelt_column('given_columns', of_a_row) | indent(4) }} as problem
),

checked_relation as materialized (
    select
        {{ dbt_nn.given_fields(
            'given.fields', of_a_row + ['image_id'], 'given_columns'
        ) | indent(8) }} as fields
    from given
    cross join relation
    where {{ dbt_nn.db_function('check_input') }}(
        'the relation of image requests '
        || {{ dbt_nn.literal(dbt_nn.whole_relation(requests)) }} || ': ' || case
            when relation.problem is not null then relation.problem
            when not given.fields ? 'image_id' then 'has no column image_id'
        end
    )
),
{%- endif %}

requests as (
    {%- if requests %}
    select
        named.image_id,
        row_number() over (order by named.number, named.image_id) as number,
        count(*) over (partition by coalesce(named.number::text, named.image_id))
            as namesakes,
        options,
        named.fields
    from (
        select
            fields ->> 'image_id' as image_id,
            fields,
            case
                when pg_input_is_valid(fields ->> 'image_id', 'integer')
                    then (fields ->> 'image_id')::integer
            end as number
        from checked_relation
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
            {{ dbt_nn.hyperparameter(scheduler, 'num_train_timesteps') }} as steps,
            lower(left({{ dbt_nn.hyperparameter(scheduler, '_class_name', 'jsonb') }} #>> '{}', 4))
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
            {{ dbt_nn.image_option_problems(of_a_row) }}
            when (options ->> 'num_inference_steps')::integer > trained_steps
                then format(
                    'num_inference_steps must be at most %s, the steps that the '
                    'network was trained with, not %s',
                    trained_steps, options -> 'num_inference_steps'
                )
            when not fields ? 'seed'
                and (options ->> 'seed')::bigint > {{ dbt_nn.largest_seed() }} - (number - 1)
                then format(
                    'seed must be at most %s, not %s: image %s of a run has the '
                    'seed + %s',
                    {{ dbt_nn.largest_seed() }} - (number - 1),
                    options -> 'seed',
                    number,
                    number - 1
                )
            when options ->> 'scheduler' = 'ddpm' and options ? 'eta'
                then 'eta is an option of the ddim scheduler, not of ddpm'
        end as error
    from completed
    where {{ dbt_nn.db_function('check_input') }}(
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
    where {{ dbt_nn.db_function('check_input') }}('the image options: ' || error)
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
        {{ dbt_nn.checkpoint_digest(checkpoint) | indent(8) }},
        scheduler, num_inference_steps, eta, seed
    ))::uuid as request,
    typed.error,
    case
        when typed.error is null then ceil(
            row_number() over (
                partition by typed.error is null
                order by typed.num_inference_steps, typed.image_id
            )::float8 / greatest(1, least(
                floor({{ dbt_nn.batch_memory(checkpoint) }} / {{ dbt_nn.diffusion_bytes_per_image(config) }}),
                {#- several sessions get a batch each #}
                ceil(
                    count(*) filter (where typed.error is null) over ()
                    / {{ dbt_nn.sessions() }}::float8
                )
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
{% macro diffusion_bytes_per_image(config) -%}
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
        select {{ dbt_nn.hyperparameter(config, 'layers_per_block') }} as resnets
    ) as block
    cross join ({{ dbt_nn.diffusion_sample_size(config) | indent(4) }}) as size
    cross join jsonb_array_elements_text(
        {{ dbt_nn.hyperparameter(config, 'block_out_channels', 'jsonb') | indent(8) }}
    ) with ordinality as level (channels, number)
    cross join lateral (
        select case
            when {{ dbt_nn.hyperparameter(config, 'down_block_types', 'jsonb') | indent(12) }}
                ->> (level.number - 1)::integer like 'Attn%'
                then 6
            else 0
        end as layers
    ) as attention
)
{%- endmacro %}
