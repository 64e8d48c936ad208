{#-
    GPT-2's pre-tokenizer as a Postgres regular expression. Source:
    https://github.com/openai/gpt-2/blob/master/src/encoder.py, which has

        's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
        |\s+(?!\S)|\s+

    There the first alternative that matches wins, in Postgres the longest. The
    two agree on all but the last pair: after `\s+(?!\S)`, `\s+` is only ever
    reached for one character, and said so (`\s`) it is never the longer one.
    Classes are spelled out, since those of Postgres depend on its locale.
-#}
{% macro _pre_token_pattern() %}
{%- set letter = dbt_nn._unicode_class('letter').split() | join -%}
{%- set number = dbt_nn._unicode_class('number').split() | join -%}
{%- set space = dbt_nn._unicode_class('space').split() | join -%}
's|'t|'re|'ve|'m|'ll|'d| ?[{{ letter }}]+| ?[{{ number }}]+| ?[^{{ space }}
{{- letter }}{{ number }}]+|[{{ space }}]+(?![^{{ space }}])|[{{ space }}]
{%- endmacro %}
