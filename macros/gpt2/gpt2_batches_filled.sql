{#-
    How full the memory for a batch is once a prompt is in it, in batches: an
    expression over rows of typed prompts. Sequences of about the same length
    come together, so that they end together. NULL for a row with an error.

    config      the checkpoint's
    checkpoint  its schema
    -> numeric; prompts that share the next higher integer share a batch
-#}
{% macro gpt2_batches_filled(config, checkpoint) -%}
case
    when error is null then sum({{ gpt2_places(config) }}) over (
        partition by error is null
        order by max_new_tokens, cardinality(prompt_token_ids), sequence_id
    ) * {{ gpt2_bytes_per_place(config) }} / {{ batch_memory(checkpoint) }}
end
{%- endmacro %}


{#- Places that the layers will have of a sequence, at most. -#}
{% macro gpt2_places(config) -%}
(
    cardinality(prompt_token_ids) + least(
        max_new_tokens,
        {{ hyperparameter(config, 'n_positions') }} - cardinality(prompt_token_ids)
    )
)
{%- endmacro %}


{#-
    What all layers keep of a place, in bytes: eleven activations of n_embd floats
    (three of them kv_blocks) and one of n_inner a block, a quarter of each page free, and the logits.
-#}
{% macro gpt2_bytes_per_place(config) -%}
(
    {{ hyperparameter(config, 'n_layer') }} * (
        11 * {{ hyperparameter(config, 'n_embd') }} + coalesce(
            {{ hyperparameter(config, 'n_inner') }},
            4 * {{ hyperparameter(config, 'n_embd') }}
        )
    ) * 5.0 + {{ hyperparameter(config, 'vocab_size') }} * 4
)
{%- endmacro %}


{#-
    Memory for the layers of a batch, in bytes: the var batch_memory, like '1GB'.
    By default half of what the server's cache (shared_buffers) has beside the
    checkpoint, and 64 MB at least.
-#}
{% macro batch_memory(checkpoint) -%}
    {%- if var('batch_memory', none) -%}
(select pg_size_bytes('{{ var("batch_memory") | replace("'", "''") }}'))
    {%- else -%}
(
    select greatest(64 * 1024 * 1024, (
        pg_size_bytes(current_setting('shared_buffers'))
        - {{ checkpoint_bytes(checkpoint) | indent(4) }}
    ) / 2)
)
    {%- endif -%}
{%- endmacro %}
