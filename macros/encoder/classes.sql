{#-
    The classes of each text of the batch, or why there are none.

    logits   [sequences, labels]   relation of a layer
    texts    relation made by encoder_texts()
    config   of the checkpoint: id2label, problem_type
    -> (key, chunk, label, score, probabilities jsonb, logits real[], tokens,
       truncated, error, checkpoint)

    Probabilities are the softmax of the logits, as in transformers' pipeline for text
    classification; where labels do not exclude each other (problem_type is
    multi_label_classification), the sigmoid of each; the logits themselves where it is
    regression. With one label, as of a network that scores pairs, score is its sigmoid,
    or the logit itself where the checkpoint's activation_fn is the identity, as in
    sentence-transformers' CrossEncoder.
-#}
{% macro encoder_classes(logits, texts, config) -%}
with scored as (
    select
        layer.sequence_id,
        layer.activation::real[] as logits,
        scores.x as scores
    from {{ logits }} as layer
    cross join (
        select
            {{ dbt_nn.hyperparameter(config, 'problem_type', 'text') }} as problem,
            coalesce({{ dbt_nn.hyperparameter(config, 'activation_fn', 'text') }}, '') as activation
    ) as head
    cross join lateral (
        select
            case
                when vector_dims(layer.activation) = 1 and head.activation ilike '%identity%'
                    or vector_dims(layer.activation) > 1 and head.problem = 'regression'
                    then layer.activation::real[]::float8[]
                when vector_dims(layer.activation) = 1
                    or head.problem = 'multi_label_classification'
                    then {{ dbt_nn.elementwise('sigmoid', 'layer.activation') }}::real[]::float8[]
                else {{ dbt_nn.softmax('layer.activation::real[]::float8[]') }}::real[]::float8[]
            end as x
    ) as scores
),

named as (
    select
        scored.sequence_id,
        scored.logits,
        label.name,
        label.score,
        label.i,
        cardinality(scored.scores) as labels
    from scored
    cross join lateral (
        select
            element.score,
            element.i,
            coalesce(
                {{ dbt_nn.hyperparameter(config, 'id2label', 'jsonb') }} ->> (element.i - 1)::text,
                'LABEL_' || (element.i - 1)
            ) as name
        from unnest(scored.scores) with ordinality as element (score, i)
    ) as label
),

chosen as (
    select
        sequence_id,
        logits,
        case when labels > 1 then (array_agg(name order by score desc, i))[1] end as label,
        max(score) as score,
        jsonb_object_agg(name, score) as probabilities
    from named
    group by sequence_id, logits, labels
)

select
    texts.key,
    texts.chunk,
    chosen.label,
    chosen.score,
    chosen.probabilities,
    chosen.logits,
    {{ dbt_nn.encoder_result_columns('texts') | indent(4) }}
from {{ texts }} as texts
left join chosen on texts.sequence_id = chosen.sequence_id
where {{ dbt_nn.is_in_batch('texts') }}
{%- endmacro %}
