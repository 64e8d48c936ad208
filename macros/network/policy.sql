{#-
    What becomes of a table's rows, by `history` in its meta, a dictionary:

                  keeps_steps   keeps_batches   is_whole
        append    true          false           false     a step adds its rows, and the
                      next batch begins anew: layers of texts that are written, whose
                      rows are a KV cache
        renew     true          false           true      each step is a batch, and has
                      rows of its own only: layers of texts that are read as a whole
        replace   false         false           true      a step's rows replace those of
                      the one before: layers of images
        keep      true          true            false     rows stay for good: results

    is_whole says that a layer has no other rows than those of the step.

    history   one of these; none: that of the model, append if it says nothing
-#}
{% macro policy(history=none) -%}
    {%- set history = history or config.meta_get('history') or 'append' -%}
    {%- set policies = {
        'append': {'keeps_steps': true, 'keeps_batches': false, 'is_whole': false},
        'renew': {'keeps_steps': true, 'keeps_batches': false, 'is_whole': true},
        'replace': {'keeps_steps': false, 'keeps_batches': false, 'is_whole': true},
        'keep': {'keeps_steps': true, 'keeps_batches': true, 'is_whole': false},
    } -%}
    {%- if history not in policies -%}
        {{ exceptions.raise_compiler_error(
            'history is ' ~ tojson(history) ~ ' in the meta of ' ~ model.name
            ~ ', and may be append, renew, replace or keep: generate the network anew '
            ~ '(dbt-nn generate)'
        ) }}
    {%- endif -%}
    {{ return(policies[history]) }}
{%- endmacro %}
