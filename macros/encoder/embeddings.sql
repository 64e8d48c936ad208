{#-
    A vector for each text of the batch, or why there is none.

    vectors   [sequences, n]   relation of a layer
    texts     relation made by encoder_texts()
    config    of the checkpoint
    -> (key, chunk, embedding vector(n), tokens, truncated, error, checkpoint)

    Of length 1 where the checkpoint normalizes, as sentence-transformers' Normalize.
-#}
{% macro encoder_embeddings(vectors, texts, config) -%}
select
    texts.key,
    texts.chunk,
    case
        when {{ dbt_nn.hyperparameter(config, 'normalize_embeddings', 'boolean') }}
            then l2_normalize(vectors.activation)
        else vectors.activation
    end as embedding,
    {{ dbt_nn.encoder_result_columns('texts') | indent(4) }}
from {{ texts }} as texts
left join {{ vectors }} as vectors
    on texts.sequence_id = vectors.sequence_id
where {{ dbt_nn.is_in_batch('texts') }}
{%- endmacro %}


{#- What is said of a text beside its result: a select list. -#}
{% macro encoder_result_columns(texts) -%}
cardinality({{ texts }}.token_ids) as tokens,
{{ texts }}.truncated,
{{ texts }}.error,
{{ texts }}.checkpoint
{%- endmacro %}


{#-
    Statements, each with its semicolon, that give the column of vectors its number of
    dimensions, without which pgvector makes no index. Vectors of another number, of
    another checkpoint, go.
-#}
{% macro give_dimensions(results, network) -%}
    do $body$
    declare
        config constant regclass := {{ dbt_nn.literal(dbt_nn.network_source(network, 'config')) }}::regclass;
        dimensions integer;
        current_dimensions integer;
    begin
        select attribute.atttypmod into current_dimensions
        from pg_attribute as attribute
        where attribute.attrelid = {{ dbt_nn.literal(results) }}::regclass
            and attribute.attname = 'embedding';
        if not found then
            return;
        end if;
        dimensions := coalesce(
            {{ dbt_nn.hyperparameter(dbt_nn.network_source(network, 'config'), 'dense_out_features') }},
            {{ dbt_nn.hyperparameter(dbt_nn.network_source(network, 'config'), 'hidden_size') }}
        );
        if dimensions is distinct from current_dimensions then
            truncate {{ results }};
            execute format(
                'alter table %s alter column embedding type vector(%s)',
                {{ dbt_nn.literal(results) }}, dimensions
            );
        end if;
    end
    $body$;
{%- endmacro %}
