{#-
    Causal self-attention with many heads over the frontier:
    softmax(Q K^T / sqrt(d)) V, each query over the keys up to its position.

    query, key, value   [places, n]   relations of layers; the key and value
                                      tables are the KV cache
    value_blocks        [blocks, n, attention_block()]   the values of each
                                      complete block of positions, transposed:
                                      made by transposed_blocks()
    heads               scalar SQL expression; d = n / heads
    -> [places, n]      the heads side by side

    A sum over keys is an inner product of the attention weights with a row of
    the transposed values; only the keys after a query's last whole block are
    scaled and added one by one. So a place's output is the same, bit for bit,
    whether later places are there already (prefill) or not (decoding).

    Vaswani et al. 2017; behaves as transformers' GPT2Attention without its
    projections.
-#}
{% macro attention(query, key, value, value_blocks, heads) -%}
    {{ return(adapter.dispatch('attention', 'dbt_nn')(
        query, key, value, value_blocks, heads
    )) }}
{%- endmacro %}


{% macro postgres__attention(query, key, value, value_blocks, heads) -%}
{{ parallel_work(
    '(select count(*) from ' ~ at_frontier(query, 'x') ~ ") * pg_relation_size('" ~ key
    ~ "') / 8 * " ~ heads
) }}
with queries as materialized (
    select
        x.sequence_id,
        x.position,
        head.number as head,
        x.size,
        {# the head's part, scaled, with zeros in the place of the other heads #}
        subvector(
            x.zeros
            || subvector(x.activation, x.size * head.number + 1, x.size)
            * {{ broadcast('1 / sqrt(x.size)', 'x.size') }}
            || x.zeros,
            x.n - x.size * head.number + 1,
            x.n
        ) as activation
    from (
        select
            x.*,
            x.n / {{ heads }} as size,
            {{ broadcast('0', 'x.n') }} as zeros
        from (
            select
                x.sequence_id,
                x.position,
                x.activation,
                vector_dims(x.activation) as n
            from {{ at_frontier(query, 'x') }}
            where {{ in_band('x') }}
        ) as x
        offset 0
    ) as x
    cross join generate_series(0, {{ heads }} - 1) as head (number)
),

{# a block of keys meets every query while it is in the processor's cache #}
scores as (
    select
        part.sequence_id,
        part.position,
        part.head,
        part.size,
        {{ db_function('vector_concat') }}(part.score order by part.start) as score
    from (
        select
            last.sequence_id,
            block.start,
            array(
                select k.activation
                from {{ key }} as k
                where k.sequence_id = last.sequence_id
                    and k.position >= block.start
                    and k.position < block.start + {{ attention_block() }}
                order by k.position
            ) as keys
        from (
            select sequence_id, max(position) as position
            from queries
            group by sequence_id
        ) as last
        cross join
            generate_series(0, last.position, {{ attention_block() }}) as block (start)
        offset 0
    ) as block
    cross join lateral (
        select
            queries.sequence_id,
            queries.position,
            queries.head,
            queries.size,
            block.start,
            array(
                select inner_product(key.x, queries.activation)
                from (select unnest(block.keys) as x) as key
            )::vector as score
        from queries
        where queries.sequence_id = block.sequence_id
            and queries.position >= block.start
        offset 0
    ) as part
    group by part.sequence_id, part.position, part.head, part.size
),

coefficients as materialized (
    select {{ exp_coefficients('longest.n') }} as x
    from (select max(position) + 1 as n from queries) as longest
),

weights as materialized (
    select
        scores.sequence_id,
        scores.position,
        scores.head,
        scores.size,
        scores.size * scores.head + 1 as start,
        (scores.position + 1) / {{ attention_block() }} as blocks,
        {{ softmax('scores.score', '(select x from coefficients)') }} as weight
    from (
        select
            sequence_id,
            position,
            head,
            size,
            subvector(score, 1, position + 1)::real[] as score
        from scores
        offset 0
    ) as scores
),

outputs as materialized (
    select
        weights.sequence_id,
        weights.position,
        weights.head,
        (
            select {{ db_function('vector_sum') }}(part.activation order by part.start)
            from (
                select
                    block.start,
                    array(
                        select inner_product(v.activation, block.weight)
                        from {{ value_blocks }} as v
                        where v.sequence_id = weights.sequence_id
                            and v.block = block.start / {{ attention_block() }}
                            and v.feature >= weights.start
                            and v.feature < weights.start + weights.size
                        order by v.feature
                    )::vector as activation
                from (
                    select
                        start,
                        subvector(
                            weights.weight, start + 1, {{ attention_block() }}
                        ) as weight
                    from generate_series(
                        0,
                        (weights.blocks - 1) * {{ attention_block() }},
                        {{ attention_block() }}
                    ) as start
                    offset 0
                ) as block
                union all
                select
                    v.position as start,
                    subvector(v.activation, weights.start, weights.size)
                    * {{ broadcast(
                        'tail.weight[v.position - tail.start + 1]', 'weights.size'
                    ) }} as activation
                from (
                    select
                        start,
                        subvector(
                            weights.weight, start + 1, {{ attention_block() }}
                        )::real[] as weight
                    from (select weights.blocks * {{ attention_block() }} as start) as tail
                    where start <= weights.position
                    offset 0
                ) as tail
                inner join {{ value }} as v
                    on v.sequence_id = weights.sequence_id
                    and v.position >= tail.start
                    and v.position <= weights.position
            ) as part
        ) as activation
    from weights
)

select
    outputs.sequence_id,
    outputs.position,
    {{ db_function('vector_concat') }}(
        outputs.activation order by outputs.head
    ) as activation
from outputs
group by outputs.sequence_id, outputs.position
{%- endmacro %}


{#-
    The blocks of positions that the frontier completes, transposed: one row a
    feature, a vector over the block's positions.

    input   [places, n]   relation of a layer
    -> (sequence_id, block, feature from 1, activation vector(attention_block()))
-#}
{% macro transposed_blocks(input) -%}
    {{ return(adapter.dispatch('transposed_blocks', 'dbt_nn')(input)) }}
{%- endmacro %}


{% macro postgres__transposed_blocks(input) -%}
select
    complete.sequence_id,
    complete.block,
    feature,
    array(
        select complete.elements[i][feature]
        from generate_series(1, {{ attention_block() }}) as i
    )::vector as activation
from (
    select
        last.sequence_id,
        last.position / {{ attention_block() }} as block,
        {# [positions][n] #}
        (
            select array_agg(x.activation::real[] order by x.position)
            from {{ input }} as x
            where x.sequence_id = last.sequence_id
                and x.position > last.position - {{ attention_block() }}
                and x.position <= last.position
        ) as elements
    from {{ frontier() }} as last
    where last.position % {{ attention_block() }} = {{ attention_block() }} - 1
    offset 0
) as complete
cross join generate_series(1, array_length(complete.elements, 2)) as feature
{%- endmacro %}


{#- Positions in a block of transposed values. -#}
{% macro attention_block() -%}
    64
{%- endmacro %}
