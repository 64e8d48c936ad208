{#-
    The options of an encoder, by their names in sentence-transformers where it has
    them:

        prompt           a text that is put before each text
        prompt_name      the name of one of the checkpoint's prompts instead
        max_seq_length   tokens that a text is cut at; the checkpoint's by default
        chunk_overlap    cut longer texts in chunks that share so many tokens instead
-#}
{% macro encoder_options() -%}
    {{ return({
        'prompt': {'type': 'text'},
        'prompt_name': {'type': 'text'},
        'max_seq_length': {'type': 'integer', 'must_be': 'a whole number'},
        'chunk_overlap': {'type': 'integer', 'must_be': 'a whole number'},
    }) }}
{%- endmacro %}


{#-
    The options with the checkpoint's defaults: a SELECT of one row.

    -> prompt    what is put before each text
       length    tokens of a sequence at most, special ones among them
       special   how many of them are special
       overlap   tokens that chunks share; NULL where texts are cut
       cls, sep  ids of the special tokens
       request   a text that tells all of this, and the checkpoint
-#}
{% macro encoder_settings(options, checkpoint, config, text_pair, tokenizer, first_position) -%}
{%- set special = 2 if not text_pair else 3 if tokenizer == 'wordpiece' else 4 -%}
select
    wanted.prompt,
    wanted.length,
    {{ special }} as special,
    wanted.overlap,
    wanted.cls,
    wanted.sep,
    concat_ws(
        '/', wanted.digest, wanted.prompt, wanted.length, wanted.overlap
    ) as request
from (
    select
        coalesce(options ->> 'prompt', prompts.given ->> prompts.name, '') as prompt,
        coalesce(
            (options ->> 'max_seq_length')::integer,
            {{ dbt_nn.hyperparameter(config, 'max_seq_length') }},
            positions.n
        ) as length,
        (options ->> 'chunk_overlap')::integer as overlap,
        {{ dbt_nn.hyperparameter(config, 'cls_token_id') }} as cls,
        {{ dbt_nn.hyperparameter(config, 'sep_token_id') }} as sep,
        {{ dbt_nn.checkpoint_digest(checkpoint) }} as digest,
        positions.n as positions
    from {{ options }}
    cross join (
        select
            {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }}
            - {{ first_position }} as n
    ) as positions
    cross join lateral (
        select
            {{ dbt_nn.hyperparameter(config, 'prompts', 'jsonb') }} as given,
            coalesce(
                options ->> 'prompt_name',
                {{ dbt_nn.hyperparameter(config, 'default_prompt_name', 'text') }}
            ) as name
    ) as prompts
    where {{ dbt_nn.db_function('check_input') }}('the encoder options: ' || case
        {%- for name, option in dbt_nn.encoder_options().items() if option.must_be %}
        when not pg_input_is_valid(options ->> '{{ name }}', '{{ option.type }}')
            then format('{{ name }} must be {{ option.must_be }}, not %s', options -> '{{ name }}')
        {%- endfor %}
        when options ? 'prompt' and options ? 'prompt_name'
            then 'give prompt or prompt_name, not both'
        when options ? 'prompt_name' and not coalesce(
            prompts.given ? (options ->> 'prompt_name'), false
        )
            then format(
                'the checkpoint has no prompt named %s: it has %s',
                options -> 'prompt_name',
                coalesce(
                    (
                        select string_agg(to_json(name)::text, ', ' order by name)
                        from jsonb_object_keys(prompts.given) as name
                    ),
                    'none'
                )
            )
        when not (options ->> 'max_seq_length')::integer
            between {{ special + 1 }} and positions.n
            then format(
                'max_seq_length must be a whole number from {{ special + 1 }} to %s, '
                'the positions of the checkpoint, not %s',
                positions.n, options -> 'max_seq_length'
            )
        {%- if text_pair %}
        when options ? 'chunk_overlap' then 'pairs of texts are not cut in chunks'
        {%- endif %}
        when (options ->> 'chunk_overlap')::integer < 0
            then format(
                'chunk_overlap must be a whole number, 0 or more, not %s',
                options -> 'chunk_overlap'
            )
    end)
    offset 0 -- so that all of these are looked at before the last one
) as wanted
where {{ dbt_nn.db_function('check_input') }}('the encoder options: ' || case
    when wanted.overlap >= wanted.length - {{ special }}
        then format(
            'chunk_overlap is %s, and must be less than the %s tokens of a chunk',
            wanted.overlap, wanted.length - {{ special }}
        )
end)
{%- endmacro %}


{#- How many tokens a batch has, about: a scalar expression. From more none comes
    faster, and a batch is what a run that is stopped loses. -#}
{% macro encoder_batch_tokens(config, checkpoint, all_tokens) -%}
{%- set sessions = dbt_nn.sessions() -%}
greatest(1, least(
    {{ dbt_nn.batch_tokens() }},
    {%- if sessions > 1 %}
    {#- several sessions get some batches each, so that they end together #}
    greatest({{ dbt_nn.least_tokens() }}, ceil({{ all_tokens }} / {{ 4 * sessions }}::numeric)),
    {%- endif %}
    {{ dbt_nn.batch_memory(checkpoint) | indent(4) }} / {{ dbt_nn.encoder_bytes_per_place(config) | indent(4) }}
))
{%- endmacro %}


{#- Tokens of texts for which a batch of their own is worth the while: 0.2 ms of a
    statement's own, for each of 60 layers, beside 2 ms of each token. -#}
{% macro least_tokens() -%}
    {{ return(512) }}
{%- endmacro %}


{#-
    What all layers keep of a place, in bytes: in each block nine activations of
    hidden_size floats and one of intermediate_size, and two at the beginning, with a
    quarter of each page free.
-#}
{% macro encoder_bytes_per_place(config) -%}
(
    (
        {{ dbt_nn.hyperparameter(config, 'num_hidden_layers') }} * (
            9 * {{ dbt_nn.hyperparameter(config, 'hidden_size') }}
            + {{ dbt_nn.hyperparameter(config, 'intermediate_size') }}
        ) + 2 * {{ dbt_nn.hyperparameter(config, 'hidden_size') }}
    ) * 5.0
)
{%- endmacro %}
