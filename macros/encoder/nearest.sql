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
    where      a condition on the rows, like "embeddings.key < 100"

    A query's vector is <network>_embed()'s: sentence-transformers' encode_query().
-#}
{% macro nearest(
    network, text=none, queries=none, query_key='id', query_text='text', k=10,
    distance='cosine', exact=false, where=none
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
    {#- An index may find fewer than k rows at its first look: HNSW hnsw.ef_search, 40
        if nobody says more and 1000 at most, without those that are dead or that a
        condition leaves out; IVFFlat those of the list that is nearest. From 0.8 on
        pgvector looks further, if it is told. All is set as long as the transaction
        goes on, and after the vector has loaded pgvector. -#}
    {%- set is_exact = exact or k > 1000 -%}
    {%- set further -%}
        {%- if k > 40 -%},
        set_config('hnsw.ef_search', greatest(
            {{ k }}, nullif(current_setting('hnsw.ef_search', true), '')::integer
        )::text, true) as candidates
        {%- endif -%}
        {%- for index, order in [('hnsw', 'strict_order'), ('ivfflat', 'relaxed_order')] -%},
        case when current_setting('{{ index }}.iterative_scan', true) = 'off'
            then set_config('{{ index }}.iterative_scan', '{{ order }}', true)
        end as {{ index }}_order
        {%- endfor -%}
    {%- endset -%}
    {%- set further = '' if is_exact else further -%}
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
        {{ embed }}(dbt_nn_row.{{ adapter.quote(query_text) }}::text) as vector{{ further }}
    from {{ queries }} as dbt_nn_row
    {%- else %}
    select
        {{ embed }}({{ text }}) as vector{{ further }}
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
    {%- if where %}
        and ({{ where }})
    {%- endif %}
    order by {{ '0 + ' if is_exact }}(embeddings.embedding {{ operator }} query.vector)
    limit {{ k }}
) as found
order by {{ 'query.key, ' if queries }}rank
{%- endmacro %}
