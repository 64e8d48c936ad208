{#-
    More functions of an encoder: `<network>_embed(text, prompt)`, the vector of one
    text, for queries. Empty for a network that gives classes.
-#}
{% macro encoder_functions(results, network) -%}
    {%- if not model.name.endswith('_embeddings') -%}
        {{ return('') }}
    {%- endif -%}
    {{ return(dbt_nn.create_embed_function(results, network)) }}
{%- endmacro %}


{#- The function's qualified name. -#}
{% macro embed_function(results, network) -%}
    {{ adapter.quote(results.schema) }}.{{ adapter.quote(network ~ '_embed') }}
{%- endmacro %}


{#-
    DDL of `<network>_embed(text, prompt)` -> vector(n).

    It is what sentence-transformers' encode_query() gives: the checkpoint's prompt
    named query is put before the text, or its default prompt, or `prompt` where that
    is given. The session that asks has layers of its own, temporary tables that its
    first question makes (session.sql): it waits for no other, nor for a run.
-#}
{% macro create_embed_function(results, network) -%}
    {%- set config = dbt_nn.network_source(network, 'config') -%}
    {%- set tokens = dbt_nn.network_relation(network ~ '_tokens') -%}
    {%- set call = dbt_nn.encoder_call(network) -%}
    {{ dbt_nn.give_dimensions(results, network) }}

    create or replace function {{ dbt_nn.embed_function(results, network) }}(
        text text, prompt text default null
    ) returns vector language plpgsql
    set search_path from current
    set max_parallel_workers_per_gather = 0
    set client_min_messages = warning
    as $embed$
    #variable_conflict use_column
    declare
        asked constant text := $1;
        put_before constant text := $2;
        vector vector;
    begin
        if asked is null then
            return null;
        end if;
        if to_regclass('pg_temp.' || {{ dbt_nn.literal(adapter.quote(network ~ '_tokens')) }}) is null then
            {%- for node in dbt_nn.own_relations(network) %}
            {{ dbt_nn.create_own_table(node) }}
            {%- endfor %}
        end if;
        delete from {{ tokens }};
        insert into {{ tokens }} (sequence_id, position, token_id, type_id)
        with options as materialized (
            select given.options || case
                when put_before is not null then jsonb_build_object('prompt', put_before)
                when {{ dbt_nn.hyperparameter(config, 'prompts', 'jsonb') }} ? 'query'
                    then '{"prompt_name": "query"}'
                else '{}'
            end as options
            from (
                select options - array['prompt', 'prompt_name', 'chunk_overlap'] as options
                from ({{ dbt_nn.run_options(
                    call.options, dbt_nn.encoder_options() | list, 'encoder'
                ) }}) as given
            ) as given
        ),

        settings as materialized (
            {{ dbt_nn.encoder_settings(
                'options', call.checkpoint, config, none, call.tokenizer, call.first_position
            ) | indent(12) }}
        ),

        readable as materialized (
            select
                0 as sequence_id,
                settings.prompt || asked as prompt
            from settings
        ),

        encoded as materialized (
            select
                coalesce(array_agg(token_id order by position), '{}') as ids
            from (
                {{ dbt_nn.encoded_texts(
                    'readable', dbt_nn.network_source(network, 'vocabulary'),
                    dbt_nn.network_source(network, call.words), config, call.tokenizer
                ) | indent(16) }}
            ) as token
        )

        select
            0,
            (token.i - 1)::integer,
            token.token_id,
            0
        from encoded
        cross join settings
        cross join lateral unnest(
            array[settings.cls]
            || encoded.ids[:settings.length - settings.special]
            || array[settings.sep]
        ) with ordinality as token (token_id, i);
        {%- for node in dbt_nn.layers_in_order(network) %}
        perform {{ dbt_nn.forward_function(api.Relation.create(
            schema=node.schema, identifier=node.alias
        )) }}(true);
        {%- endfor %}
        select
            case
                when {{ dbt_nn.hyperparameter(config, 'normalize_embeddings', 'boolean') }}
                    then l2_normalize(layer.activation)
                else layer.activation
            end
        into vector
        from {{ dbt_nn.network_relation(dbt_nn.encoder_vectors(network)) }} as layer
        where layer.sequence_id = 0;
        return vector;
    end
    $embed$;
{%- endmacro %}


{#- What the network's texts are made with, a dictionary: vars, and what its sources
    tell of its tokenizer. -#}
{% macro encoder_call(network) -%}
    {%- set sources = graph.sources.values()
        | selectattr('source_name', 'equalto', network)
        | selectattr('package_name', 'equalto', model.package_name)
        | map(attribute='name') | list -%}
    {%- set tokenizer = 'wordpiece' if 'characters' in sources
        else 'unigram' if 'replacements' in sources else 'bpe' -%}
    {%- set texts = graph.nodes['model.' ~ model.package_name ~ '.' ~ network ~ '_texts'] -%}
    {{ return({
        'options': var(network ~ '_options', {}),
        'checkpoint': var(network ~ '_checkpoint', network),
        'tokenizer': tokenizer,
        'words': {
            'wordpiece': 'characters', 'unigram': 'replacements', 'bpe': 'merges'
        }[tokenizer],
        'first_position': dbt_nn.hyperparameter(
            dbt_nn.network_source(network, 'config'), 'pad_token_id'
        ) ~ ' + 1' if texts.config.meta.padded_positions else 0,
    }) }}
{%- endmacro %}
