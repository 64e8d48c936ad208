{#-
    The rows of a table of embeddings that are nearest to a text, or to each text of a
    relation: a SELECT of (rank, key, chunk, distance), with the query's own key before
    them where the queries are a relation.

    network    of the embeddings, like 'minilm'
    text       an expression, like "'a proposal is refused'"
    queries    instead: a relation, with its columns `query_key` and `query_text`
    k          how many rows
    distance   cosine, l2 or inner_product: the same as that of the index
    exact      whether every row is looked at, and not the index alone

    A query's vector is <network>_embed()'s: sentence-transformers' encode_query().
-#}
{% macro nearest(
    network, text=none, queries=none, query_key='id', query_text='text', k=10,
    distance='cosine', exact=false
) -%}
    {%- if (text is none) == (queries is none) -%}
        {{ exceptions.raise_compiler_error('nearest: give either text or queries') }}
    {%- endif -%}
    {%- if k is not integer or k < 1 -%}
        {{ exceptions.raise_compiler_error(
            'nearest: k is ' ~ tojson(k) ~ ', and must be a whole number above 0'
        ) }}
    {%- endif -%}
    {%- set embeddings = ref(network ~ '_embeddings') -%}
    {%- set operator = dbt_nn.vector_distance(distance).operator -%}
    {%- set embed = dbt_nn.embed_function(embeddings, network) -%}
    {#- HNSW gives hnsw.ef_search rows at most, 40 if nobody says more, and 1000 is
        pgvector's limit. It is set as long as the transaction goes on. -#}
    {%- set is_exact = exact or k > 1000 -%}
    {%- set candidates -%}
        set_config('hnsw.ef_search', greatest(
            {{ k }}, nullif(current_setting('hnsw.ef_search', true), '')::integer
        )::text, true) as candidates
    {%- endset -%}
    {%- set candidates = '' if is_exact or k <= 40 else ',\n        ' ~ candidates -%}
select
    {%- if queries %}
    query.key as query_key,
    {%- endif %}
    row_number() over ({{ 'partition by query.key ' if queries }}order by found.distance, found.key) as rank,
    found.key,
    found.chunk,
    found.distance
from (
    {%- if queries %}
    select
        dbt_nn_row.{{ adapter.quote(query_key) }} as key,
        {{ embed }}(dbt_nn_row.{{ adapter.quote(query_text) }}::text) as vector{{ candidates }}
    from {{ queries }} as dbt_nn_row
    {%- else %}
    select
        {{ embed }}({{ text }}) as vector{{ candidates }}
    {%- endif %}
    offset 0
) as query
cross join lateral (
    select
        embeddings.key,
        embeddings.chunk,
        embeddings.embedding {{ operator }} query.vector as distance
    from {{ embeddings }} as embeddings
    where embeddings.embedding is not null
    order by {{ '0 + ' if is_exact }}(embeddings.embedding {{ operator }} query.vector)
    limit {{ k }}
) as found
order by {{ 'query.key, ' if queries }}rank
{%- endmacro %}
