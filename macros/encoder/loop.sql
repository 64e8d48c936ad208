{#-
    What the materializations need to know of an encoder. A step is a batch of whole
    texts: every layer begins anew with the next one.
-#}

{#- An expression that tells what the layers are of, a text: tokens and checkpoint. -#}
{% macro encoder_fingerprint(network) -%}
(
    select concat_ws(
        '/',
        {{ dbt_nn.checkpoint_digest(var(network ~ '_checkpoint', network)) | indent(8) }},
        string_agg(
            tokens.sequence_id || ' ' || tokens.token_id || ' ' || tokens.type_id,
            ',' order by tokens.sequence_id, tokens.position
        )
    )
    from {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
)
{%- endmacro %}


{#- A SELECT that raises an error unless the layers have the texts of the batch. -#}
{% macro encoder_check(network) -%}
    {%- set vectors = dbt_nn.encoder_vectors(network) -%}
    select {{ dbt_nn.db_function('check_input') }}(
        case
            when exists (
                select
                from {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
                left join {{ dbt_nn.network_relation(vectors) }} as vectors
                    using (sequence_id)
                where tokens.position = 0 and vectors.sequence_id is null
            )
                then 'the layers do not have the newest texts: run '
                    'dbt run --select {{ network }}'
        end
    )
{%- endmacro %}


{#- The model that the network's last one reads: its name. -#}
{% macro encoder_vectors(network) -%}
    {%- for id in model.depends_on.nodes
        if id in graph.nodes and graph.nodes[id].config.materialized == 'layer' -%}
        {{ return(graph.nodes[id].name) }}
    {%- endfor -%}
{%- endmacro %}


{#- A condition on texts: they are of the batch that the layers have, and not done. -#}
{% macro is_in_batch(texts) -%}
{{ texts }}.finished_at is null
and {{ texts }}.batch = coalesce({{ dbt_nn.own_batch() }}, (
    select min(unfinished.batch)
    from ({{ dbt_nn.encoder_unfinished(config.meta_get('network')) }}) as unfinished
))
{%- endmacro %}


{#- The relation of the texts with their batches. -#}
{% macro encoder_batches(network) -%}
    {{- dbt_nn.network_relation(network ~ '_texts') -}}
{%- endmacro %}


{#- A SELECT of the batches that have something left: (batch), several times. -#}
{% macro encoder_unfinished(network) -%}
    select texts.batch
    from {{ dbt_nn.encoder_batches(network) }} as texts
    where texts.finished_at is null
{%- endmacro %}


{#- Whether the layers have the first batch that is not finished, or there is nothing of
    it to be computed: an expression. -#}
{% macro encoder_is_begun(network) -%}
    {%- set texts = dbt_nn.encoder_batches(network) -%}
    not exists (
        select from {{ texts }} as texts
        where texts.error is null
            and texts.batch = (
                select min(unfinished.batch)
                from ({{ dbt_nn.encoder_unfinished(network) }}) as unfinished
            )
    )
    or exists (
        select
        from {{ texts }} as texts
        inner join {{ dbt_nn.network_relation(network ~ '_tokens') }} as tokens
            using (sequence_id)
        where texts.finished_at is null
    )
{%- endmacro %}


{#- A statement that drops the results of texts that are not there any more. -#}
{% macro encoder_forget(results, network) -%}
    {{ dbt_nn.give_dimensions(results, network) }}
    delete from {{ results }} as results
    where not exists (
        select from {{ dbt_nn.network_relation(network ~ '_texts') }} as texts
        where texts.key = results.key and texts.chunk = results.chunk
    )
{%- endmacro %}


{#- A statement that drops the results which those of the batch replace. -#}
{% macro encoder_outdated(results, network) -%}
    delete from {{ results }} as results
    using {{ dbt_nn.network_relation(network ~ '_texts') }} as texts
    where {{ dbt_nn.is_in_batch('texts') }}
        and texts.key = results.key
        and texts.chunk = results.chunk
{%- endmacro %}


{#- The body of a function that makes the next batch the current one; it returns true, or
    NULL where none is left. -#}
{% macro encoder_advance(results, network) -%}
    {%- set texts = dbt_nn.network_relation(network ~ '_texts') -%}
    {%- set tokens = dbt_nn.network_relation(network ~ '_tokens') -%}
    declare
        next_batch integer;
    begin
        {# what is said to be done outlives a crash, whatever the setting #}
        perform set_config('synchronous_commit', 'on', true);
        update {{ texts }} as texts
        set finished_at = clock_timestamp()
        where {{ dbt_nn.is_in_batch('texts') }};
        next_batch := {{ dbt_nn.take_function(results) }}();
        if next_batch is null then
            return null;
        end if;
        delete from {{ tokens }};
        insert into {{ tokens }} (sequence_id, position, token_id, type_id)
        {{ dbt_nn.encoder_tokens(texts, batch='next_batch') }};
        return true;
    end
{%- endmacro %}


{#- A SELECT of one row (steps, places, news, pieces): how many batches are still to be
    made, how many texts the newest has, and how far the run is. -#}
{% macro encoder_progress(results, network) -%}
    {%- set texts = dbt_nn.network_relation(network ~ '_texts') -%}
    select
        (count(distinct batch) filter (
            where finished_at is null
        ) - (count(*) filter (where {{ dbt_nn.is_in_batch('texts') }}) > 0)::integer)::integer as steps,
        (count(*) filter (where {{ dbt_nn.is_in_batch('texts') }}))::integer as places,
        case
            when count(*) filter (where finished_at is null) = 0 then 'no new texts'
            else format(
                '%s of %s texts',
                count(*) filter (where finished_at is not null or {{ dbt_nn.is_in_batch('texts') }}),
                count(*)
            )
        end as news,
        null as pieces
    from {{ texts }} as texts
{%- endmacro %}


{#- How fast it goes, for a person. -#}
{% macro encoder_pace(seconds, steps, places, steps_left) -%}
    {{- '%.1f texts/s, %s left' | format(
        places / seconds, dbt_nn.clock_time(seconds / steps * steps_left)
    ) -}}
{%- endmacro %}


{#- A SELECT of (n, example): the texts that have an error. -#}
{% macro encoder_problems(network, package) -%}
    select
        count(*) as n,
        min(format('key %s: %s', texts.key, texts.error)) as example
    from {{ graph.nodes['model.' ~ package ~ '.' ~ network ~ '_texts'].relation_name }} as texts
    where texts.error is not null
{%- endmacro %}
