{#-
    Self-attention with many heads over the frontier: softmax(Q K^T / sqrt(d)) V.

    A place is of an item, a sequence or an image, which the first of its columns names.
    A query attends to all places of its item, or, causal, to those up to its own
    position, which is the second column.

    query               [places, n]   relation of a layer
    key, value          [places, m]   likewise; of texts, their tables are the KV cache.
                                      m = n, or less with kv_heads
    heads               scalar SQL expression; d = n / heads
    head_size           d, instead of heads; where it is NULL, there is one head
    causal              whether the later positions of a text are out of sight
    blocks              what an engine keeps of keys and values for causal attention:
                        attention_blocks()
    kv_heads            scalar SQL expression that divides heads, with causal: keys and
                        values have so many, m = kv_heads * d, each for as many heads that
                        are side by side
    window              scalar SQL expression, with causal: to how many positions a query
                        attends, its own one among them
    -> [places, n]      the heads side by side

    Vaswani et al. 2017; behaves as torch's scaled_dot_product_attention, with is_causal
    as in transformers' GPT2Attention, without as in diffusers' Attention; with kv_heads
    as with enable_gqa (Ainslie et al. 2023), with window as in transformers'
    MistralAttention (Jiang et al. 2023).
-#}
{% macro attention(
    query, key, value, heads=none, head_size=none, causal=false, blocks=none,
    kv_heads=none, window=none
) -%}
    {%- set kernel = dbt_nn.form(dbt_nn.default__attention, adapter.dispatch('attention', 'dbt_nn')) -%}
    {{ return(kernel(
        query, key, value, heads, head_size, causal, blocks, kv_heads, window
    )) }}
{%- endmacro %}


{#- With a row for each head of a query and of a key that it attends to. -#}
{% macro default__attention(
    query, key, value, heads, head_size, causal, blocks, kv_heads, window
) -%}
{%- set place = dbt_nn.place_columns() -%}
{%- set kv_start = 'head.size * head.' ~ ('kv_number' if kv_heads else 'number') -%}
with pairs as (
    select
        {{ dbt_nn.place('q') }},
        head.number as head,
        {{ dbt_nn.dot(
            dbt_nn.slice('q.activation', 'head.size * head.number', 'head.size'),
            dbt_nn.slice('k.activation', kv_start, 'head.size'),
        ) }} / sqrt(head.size) as score,
        {{ dbt_nn.slice('v.activation', kv_start, 'head.size') }} as v
    from {{ dbt_nn.at_frontier(query, 'q') }}
    inner join {{ key }} as k
        on k.{{ place[0] }} = q.{{ place[0] }}
        {%- if causal %}
        and k.{{ place[1] }} <= q.{{ place[1] }}
        {%- endif %}
        {%- if window %}
        and k.{{ place[1] }} > q.{{ place[1] }} - {{ window }}
        {%- endif %}
    inner join {{ value }} as v on ({{ dbt_nn.place('v') }}) = ({{ dbt_nn.place('k') }})
    cross join lateral (
        select
            number,
            {%- if kv_heads %}
            number * {{ kv_heads }} / n.heads as kv_number,
            {%- endif %}
            vector_dims(q.activation) / n.heads as size
        from (select {{ dbt_nn.head_count('q.activation', heads, head_size) }} as heads) as n
        cross join lateral generate_series(0, n.heads - 1) as number
    ) as head
),

{# exp(score) / their sum is the softmax; with the largest subtracted, none overflows #}
weights as (
    select
        *,
        {{ dbt_nn.bounded_exp('score - max(score) over one_query') }} as weight
    from pairs
    window one_query as (partition by {{ dbt_nn.place('pairs') }}, head)
),

outputs as (
    select
        {{ dbt_nn.place('weights') }},
        weights.head,
        element.i,
        sum(weights.weight * element.value) / sum(weights.weight) as value
    from weights
    cross join {{ dbt_nn.elements_of('weights.v', 'element') }}
    group by {{ dbt_nn.place('weights') }}, weights.head, element.i
)

select
    {{ dbt_nn.place('outputs') }},
    {{ dbt_nn.vector_of('outputs.value', by='outputs.head, outputs.i') }} as activation
from outputs
group by {{ dbt_nn.place('outputs') }}
{%- endmacro %}


{#- How many heads a vector has: an expression. -#}
{% macro head_count(x, heads, head_size) -%}
    {%- if heads -%}
    {{ heads }}
    {%- else -%}
    vector_dims({{ x }}) / coalesce({{ head_size }}, vector_dims({{ x }}))
    {%- endif -%}
{%- endmacro %}


{#-
    What attention() reads of the blocks of positions that the frontier completes, as
    rows of vectors that fill a page at most.

    key, value   [places, n]   relations of layers
    heads        scalar SQL expression, how many keys and values have; d = n / heads
    -> (sequence_id, head, positions, part, block, x vector[]), block b being the
       `positions` from b * positions on. Part 0 of a block of key_block() positions
       is the head's keys, a vector(d) for each position. Part p > 0 of one of
       value_blocks() positions is its values, transposed: a vector(positions) for
       each of its features from (p - 1) * features_in_row() on.
-#}
{% macro attention_blocks(key, value, heads) -%}
    {{ return(adapter.dispatch('attention_blocks', 'dbt_nn')(key, value, heads)) }}
{%- endmacro %}


{#- No rows, where an engine has no attention that reads them. -#}
{% macro default__attention_blocks(key, value, heads) -%}
select
    k.sequence_id,
    0 as head,
    0 as positions,
    0 as part,
    0 as block,
    array[k.activation] as x
from {{ key }} as k
where false
{%- endmacro %}
