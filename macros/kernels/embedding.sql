{#-
    The embedding of a token, at its position where that has one, rows of up to three
    tables added up: words[token] + positions[first_position + position] + types[type].

    tokens           [places]           relation: (sequence_id, position, token_id)
                                        and, for types, type_id
    words            [vocabulary, n]    token embedding
    positions        [positions, n]     position embedding, if there is one
    types            [types, n]         embedding of a token's type, if there is one
    first_position   scalar SQL expression: the row of the first token's position
    -> [places, n]

    Behaves as the torch.nn.Embedding of transformers' GPT2Model, BertModel, LlamaModel.
-#}
{% macro embedding(tokens, words, positions=none, types=none, first_position=0) -%}
    {{ return(adapter.dispatch('embedding', 'dbt_nn')(
        tokens, words, positions, types, first_position
    )) }}
{%- endmacro %}


{% macro default__embedding(tokens, words, positions, types, first_position) -%}
select
    {{ dbt_nn.place('tokens') }},
    {{ dbt_nn.embedding_row(words, 'tokens.token_id') }}
    {%- if positions -%}
    {%- set position = 'tokens.position' -%}
    {%- if first_position -%}
        {%- set position = position ~ ' + ' ~ first_position -%}
    {%- endif %}
    + {{ dbt_nn.embedding_row(positions, position) }}
    {%- endif -%}
    {%- if types %}
    + {{ dbt_nn.embedding_row(types, 'tokens.type_id') }}
    {%- endif %} as activation
from {{ tokens }} as tokens
{%- endmacro %}


{#- One row of an embedding's weights, its chunks put together. -#}
{% macro embedding_row(weights, feature) -%}
    (
        select {{ dbt_nn.db_function('vector_concat') }}(w.weight::vector order by w.chunk)
        from generate_series(0, (select max(chunk) from {{ weights }})) as part
        inner join {{ weights }} as w
            on part = w.chunk and w.feature = {{ feature }}
    )
{%- endmacro %}
