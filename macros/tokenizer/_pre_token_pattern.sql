{#-
    A pre-tokenizer as a Postgres regular expression that matches its words.

    gpt2      https://github.com/openai/gpt-2/blob/master/src/encoder.py:
                  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
                  |\s+(?!\S)|\s+
    digits    the same after each digit has become a word of its own, as the
              pre-tokenizer Digits of `tokenizers` does. What comes before a digit
              ends there: no \S follows its blanks.
    llama3    https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py:
                  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
                  | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
    qwen2     the same with \p{N}, of transformers' Qwen2Tokenizer
    metaspace a blank with what follows it
    spaces    blanks with what follows them

    There the first alternative that matches wins, in Postgres the longest. What
    the two don't agree on is said otherwise:

    - After `\s+(?!\S)`, `\s+` is only ever reached for one character, and said so
      (`\s`) it is never the longer one.
    - `'s` comes before `'start`: a word begins with no contraction.
    - `\s*[\r\n]+` comes before `\s+(?!\S)`: the latter has no line end.

    Classes are spelled out, since those of Postgres depend on its locale. \u017F is
    a lower case of S.
-#}
{% macro _pre_token_pattern(kind='gpt2') %}
{%- set letter = dbt_nn._unicode_class('letter').split() | join -%}
{%- set number = dbt_nn._unicode_class('number').split() | join -%}
{%- set digit = number ~ dbt_nn._unicode_class('later_digit').split() | join -%}
{%- set space = dbt_nn._unicode_class('space').split() | join -%}
{%- set blank = space | replace('\\u0009-\\u000D', '\\u0009\\u000B-\\u000C') -%}
{%- set contraction = "'(?:[sS\\u017FtTmMdD]|[rRvV][eE]|[lL][lL])" -%}
{%- if kind == 'gpt2' -%}
's|'t|'re|'ve|'m|'ll|'d| ?[{{ letter }}]+| ?[{{ number }}]+| ?[^{{ space }}
{{- letter }}{{ number }}]+|[{{ space }}]+(?![^{{ space }}])|[{{ space }}]
{%- elif kind == 'digits' -%}
's|'t|'re|'ve|'m|'ll|'d| ?[{{ letter }}]+|[{{ digit }}]| ?[^{{ space }}
{{- letter }}{{ digit }}]+|[{{ space }}]+(?![^{{ space }}{{ digit }}])|[{{ space }}]
{%- elif kind in ('llama3', 'qwen2') -%}
{{ contraction }}|(?!{{ contraction }})[^\r\n{{ letter }}{{ number }}]?[{{ letter }}]+|[{{ number }}]
{{- '{1,3}' if kind == 'llama3' }}| ?[^{{ space }}{{ letter }}{{ number }}]+[\r\n]*|[{{ space }}]*[\r\n]+
{{- '' }}|[{{ blank }}]+(?![^{{ space }}])|[{{ blank }}]
{%- elif kind == 'metaspace' -%}
[ ][^ ]*|[^ ]+
{%- elif kind == 'spaces' -%}
[ ]+[^ ]*|[^ ]+
{%- endif -%}
{%- endmacro %}

