{#-
    How full a batch is once a prompt is in it, in batches: an expression over rows
    of typed prompts. A prompt takes its part of the memory, and at least one of the
    var batch_prompts' places. Sequences of about the same length come together, so
    that they end together. NULL for a row with an error.

    The rows have a column prompts_per_batch, the macro's value.

    config      the checkpoint's
    checkpoint  its schema
    -> numeric; prompts that share the next higher integer share a batch
-#}
{% macro text_batches_filled(config, checkpoint) -%}
{%- set prompts = 'prompts_per_batch' if dbt_nn.prompts_per_batch() -%}
case
    {#- whole numbers are added, and divided once: no sum is rounded over a batch's end #}
    when error is null then sum(
        {%- if prompts %}
        greatest(
            {{ dbt_nn.text_places(config) }} * {{ dbt_nn.text_bytes_per_place(config) }} * {{ prompts }},
            {{ dbt_nn.batch_memory(checkpoint) | indent(12) }}
        )
        {%- else %}
        {{ dbt_nn.text_places(config) }} * {{ dbt_nn.text_bytes_per_place(config) }}
        {%- endif %}
    ) over (
        partition by error is null
        order by max_new_tokens, cardinality(prompt_token_ids), sequence_id
    ) / {{ dbt_nn.batch_memory(checkpoint) | indent(4) }}{{ ' / ' ~ prompts if prompts }}
end
{%- endmacro %}


{#- How many prompts may share a batch: an expression over rows of typed prompts, or
    none for no limit. Several sessions get as many batches each, all of a size, where
    there are prompts enough for them: a batch of sixteen makes a token for each in a
    third of the time that they take one by one. -#}
{% macro prompts_per_batch() -%}
    {%- set prompts = dbt_nn.batch_prompts() -%}
    {%- set sessions = dbt_nn.sessions() -%}
    {%- if sessions == 1 -%}
        {{ return(prompts) }}
    {%- endif -%}
    {%- set rounds = 'ceil(count(*) filter (where error is null) over () / '
        ~ sessions * prompts ~ '::numeric)' if prompts else '1' -%}
least({{ prompts or 'null' }}, greatest({{ dbt_nn.least_prompts() }}, ceil(
    count(*) filter (where error is null) over () / ({{ sessions }} * greatest(1, {{ rounds }}))::numeric
)))
{%- endmacro %}


{#- Prompts for which a session of their own is worth the while. -#}
{% macro least_prompts() -%}
    {{ return(16) }}
{%- endmacro %}


{#- Places that the layers will have of a sequence, at most. -#}
{% macro text_places(config) -%}
(
    cardinality(prompt_token_ids) + greatest(
        least(
            max_new_tokens,
            {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }} - cardinality(prompt_token_ids)
        ),
        {#- the longest choice's, NULL without any #}
        (
            select max(jsonb_array_length(choice.token_ids)) - 1
            from jsonb_array_elements(choice_token_ids) as choice (token_ids)
        )
    )
)
{%- endmacro %}


{#-
    What all layers keep of a place, in bytes, with a quarter of each page free: in each
    block four activations of hidden_size floats, two of all heads of queries, five of all
    heads of keys (three of them kv_blocks), and one of intermediate_size, or two with a
    gate; and the logits.
-#}
{% macro text_bytes_per_place(config) -%}
(
    {{ dbt_nn.hyperparameter(config, 'num_hidden_layers') }} * (
        4 * {{ dbt_nn.hyperparameter(config, 'hidden_size') }}
        + (
            2 * {{ dbt_nn.hyperparameter(config, 'num_attention_heads') }}
            + 5 * {{ dbt_nn.hyperparameter(
                config, 'num_key_value_heads', otherwise='num_attention_heads'
            ) | indent(12) }}
        ) * {{ dbt_nn.head_dim(config) }}
        + (1 + exists (select from {{ config }} where parameter = 'hidden_act')::integer)
        * {{ dbt_nn.hyperparameter(config, 'intermediate_size') }}
    ) * 5.0 + {{ dbt_nn.hyperparameter(config, 'vocab_size') }} * 4
)
{%- endmacro %}


{#- How many numbers a head has: a scalar expression. -#}
{% macro head_dim(config) -%}
    coalesce(
        {{ dbt_nn.hyperparameter(config, 'head_dim') }},
        {{ dbt_nn.hyperparameter(config, 'hidden_size') }}
        / {{ dbt_nn.hyperparameter(config, 'num_attention_heads') }}
    )
{%- endmacro %}


{#-
    Memory for the layers of a batch, in bytes: the var batch_memory, like '1GB'.
    By default half of what the server's cache (shared_buffers) has beside the
    checkpoint, and 64 MB at least.
-#}
{% macro batch_memory(checkpoint) -%}
    {%- set memory = dbt_nn.memory_setting('batch_memory') -%}
    {%- if memory is not none -%}
{{ [memory, 1] | max }}
    {%- else -%}
(
    select greatest(64 * 1024 * 1024, (
        pg_size_bytes(current_setting('shared_buffers'))
        - {{ dbt_nn.checkpoint_bytes(checkpoint) | indent(4) }}
    ) / 2)
)
    {%- endif -%}
{%- endmacro %}
