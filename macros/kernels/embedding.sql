{#-
    The embedding of a token at its position: wte[token] + wpe[position].

    tokens   [places]           relation: (sequence_id, position, token_id)
    wte      [vocabulary, n]    token embedding
    wpe      [positions, n]     position embedding
    -> [places, n]

    Behaves as the two torch.nn.Embedding of transformers' GPT2Model.
-#}
{% macro embedding(tokens, wte, wpe) -%}
    {{ return(adapter.dispatch('embedding', 'dbt_nn')(tokens, wte, wpe)) }}
{%- endmacro %}


{% macro postgres__embedding(tokens, wte, wpe) -%}
select
    {{ place('tokens') }},
    {{ embedding_row(wte, 'tokens.token_id') }}
    + {{ embedding_row(wpe, 'tokens.position') }} as activation
from {{ tokens }} as tokens
{%- endmacro %}


{#- One row of an embedding's weights, its chunks put together. -#}
{% macro embedding_row(weights, feature) -%}
    (
        select {{ db_function('vector_concat') }}(w.weight::vector order by w.chunk)
        from generate_series(0, (select max(chunk) from {{ weights }})) as part
        inner join {{ weights }} as w
            on part = w.chunk and w.feature = {{ feature }}
    )
{%- endmacro %}
