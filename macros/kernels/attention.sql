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
{#- A query and a key of a head take as long as some twenty multiply-adds a channel. -#}
{{ parallel_work(
    '(select count(*) from ' ~ at_frontier(query, 'x') ~ ") * pg_relation_size('" ~ key
    ~ "') / 2 * " ~ heads
) }}
{# the scaled queries of each sequence #}
with queries as materialized (
    select
        x.sequence_id,
        x.size,
        array_agg(x.position order by x.position) as positions,
        array_agg(
            x.activation * {{ broadcast('1 / sqrt(x.size)', 'vector_dims(x.activation)') }}
            order by x.position
        ) as activations
    from (
        select
            x.sequence_id,
            x.position,
            x.activation,
            vector_dims(x.activation) / {{ heads }} as size
        from {{ at_frontier(query, 'x') }}
        where {{ in_band('x') }}
        offset 0
    ) as x
    group by x.sequence_id, x.size
),

scores as (
    {{ attention_scores(key, heads) | indent }}
),

coefficients as materialized (
    select {{ exp_coefficients('longest.n') }} as x
    from (
        select max(position) + 1 as n
        from queries
        cross join lateral unnest(queries.positions) as position
    ) as longest
),

{# the attention weights of each head; `start` features are before its own #}
heads as materialized (
    select
        weights.sequence_id,
        weights.head,
        weights.size,
        weights.size * weights.head as start,
        array_agg(weights.position order by weights.position) as positions,
        array_agg(weights.weight order by weights.position) as weights
    from (
        select
            scores.sequence_id,
            scores.head,
            scores.position,
            scores.size,
            {{ softmax('scores.score', '(select x from coefficients)') }} as weight
        from (
            select
                sequence_id,
                head,
                position,
                size,
                subvector(score, 1, position + 1)::real[] as score
            from scores
            offset 0
        ) as scores
        offset 0
    ) as weights
    group by weights.sequence_id, weights.head, weights.size
),

sharing as materialized (
    select exists (select from queries where cardinality(positions) > 1) as several
),

wholes as (
    {{ sum_of_value_blocks(value_blocks) | indent }}
),

tails as (
    {{ sum_of_newest_values(value) | indent }}
),

outputs as (
    select
        part.sequence_id,
        part.position,
        part.head,
        {{ db_function('vector_sum') }}(part.activation order by part.is_tail) as activation
    from (
        select wholes.*, false as is_tail from wholes
        union all
        select tails.*, true as is_tail from tails
    ) as part
    group by part.sequence_id, part.position, part.head
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
    The scores of attention()'s `queries`: a SELECT. A head's part of a block of keys
    meets every query of its sequence while it is in the processor's cache.
-#}
{% macro attention_scores(key, heads) -%}
select
    part.sequence_id,
    part.head,
    part.position,
    part.size,
    {{ db_function('vector_concat') }}(part.score order by part.start) as score
from (
    select
        block.sequence_id,
        block.size,
        block.positions,
        block.activations,
        block.start,
        head.number as head,
        {%- for i in range(attention_block()) %}
        subvector(
            block.k{{ i }}, block.size * head.number + 1, block.size
        ) as k{{ i }},
        {%- endfor %}
        block.k_count
    from (
        select
            keys.sequence_id,
            keys.size,
            keys.positions,
            keys.activations,
            keys.start,
            {{ block_columns('keys.x', 'k', attention_block()) | indent(16) }}
        from (
            select
                queries.*,
                block.start,
                array(
                    select k.activation
                    from {{ key }} as k
                    where k.sequence_id = queries.sequence_id
                        and k.position >= block.start
                        and k.position < block.start + {{ attention_block() }}
                    order by k.position
                ) as x
            from queries
            cross join lateral generate_series(
                0,
                (select max(position) from unnest(queries.positions) as position),
                {{ attention_block() }}
            ) as block (start)
            offset 0
        ) as keys
        offset 0
    ) as block
    cross join generate_series(0, {{ heads }} - 1) as head (number)
    offset 0
) as block
cross join lateral (
    select
        block.sequence_id,
        block.head,
        query.position,
        block.size,
        block.start,
        {{ block_products('block.k', 'query.activation', attention_block()) | indent(12) }}
        as score
    from (
        select
            x.position,
            subvector(x.activation, block.size * block.head + 1, block.size) as activation
        from (
            select
                unnest(block.positions) as position,
                unnest(block.activations) as activation
        ) as x
        where x.position >= block.start
        offset 0
    ) as query
    offset 0
) as part
group by part.sequence_id, part.head, part.position, part.size
{%- endmacro %}


{#-
    The part of attention() that is of whole blocks of keys: a SELECT from its
    `heads`. One position reads the values from the table; several of a sequence
    share the reading, as in matmul_rows().
-#}
{% macro sum_of_value_blocks(value_blocks) -%}
select
    query.sequence_id,
    query.head,
    query.position,
    (
        select {{ db_function('vector_sum') }}(part.activation order by part.start)
        from (
            select
                block.start,
                array(
                    select inner_product(v.activation, block.weight)
                    from {{ value_blocks }} as v
                    where v.sequence_id = query.sequence_id
                        and v.block = block.start / {{ attention_block() }}
                        and v.feature > query.start
                        and v.feature <= query.start + query.size
                    order by v.feature
                )::vector as activation
            from (
                select
                    start,
                    subvector(query.weight, start + 1, {{ attention_block() }}) as weight
                from generate_series(
                    0,
                    query.position + 1 - {{ attention_block() }},
                    {{ attention_block() }}
                ) as start
                offset 0
            ) as block
        ) as part
    ) as activation
from (
    select heads.*, heads.positions[1] as position, heads.weights[1] as weight
    from heads
    where not (select several from sharing)
    offset 0
) as query
where query.position + 1 >= {{ attention_block() }}

union all

select
    summed.sequence_id,
    summed.head,
    summed.position,
    {{ db_function('vector_concat') }}(
        summed.activation order by summed.first_feature
    ) as activation
from (
    select
        part.sequence_id,
        part.head,
        part.position,
        part.first_feature,
        {{ db_function('vector_sum') }}(part.activation order by part.start) as activation
    from (
        select
            values.sequence_id,
            values.head,
            values.positions,
            values.weights,
            values.start,
            values.first_feature,
            {{ block_columns('values.x', 'v', feature_block()) | indent(16) }}
        from (
            select
                heads.sequence_id,
                heads.head,
                heads.positions,
                heads.weights,
                block.start,
                first_feature,
                array(
                    select v.activation
                    from {{ value_blocks }} as v
                    where v.sequence_id = heads.sequence_id
                        and v.block = block.start / {{ attention_block() }}
                        and v.feature > first_feature
                        and v.feature <= least(
                            first_feature + {{ feature_block() }},
                            heads.start + heads.size
                        )
                    order by v.feature
                ) as x
            from heads
            cross join lateral generate_series(
                0,
                (select max(position) from unnest(heads.positions) as position)
                + 1 - {{ attention_block() }},
                {{ attention_block() }}
            ) as block (start)
            cross join lateral generate_series(
                heads.start, heads.start + heads.size - 1, {{ feature_block() }}
            ) as first_feature
            where (select several from sharing)
            offset 0
        ) as values
        offset 0
    ) as block
    cross join lateral (
        select
            block.sequence_id,
            block.head,
            query.position,
            block.first_feature,
            block.start,
            {{ block_products('block.v', 'query.weight', feature_block()) | indent(16) }}
            as activation
        from (
            select
                x.position,
                subvector(x.weight, block.start + 1, {{ attention_block() }}) as weight
            from (
                select
                    unnest(block.positions) as position,
                    unnest(block.weights) as weight
            ) as x
            where x.position >= block.start + {{ attention_block() }} - 1
            offset 0
        ) as query
        offset 0
    ) as part
    group by part.sequence_id, part.head, part.position, part.first_feature
) as summed
group by summed.sequence_id, summed.head, summed.position
{%- endmacro %}


{#- The part that is of the keys after them, one by one: a SELECT. -#}
{% macro sum_of_newest_values(value) -%}
select part.*
from (
    select
        heads.*,
        tail.first_key,
        array(
            select subvector(v.activation, heads.start + 1, heads.size)
            from {{ value }} as v
            where v.sequence_id = heads.sequence_id
                and v.position >= tail.first_key
                and v.position < tail.first_key + {{ attention_block() }}
            order by v.position
        ) as values
    from heads
    cross join lateral (
        select distinct
            position / {{ attention_block() }} * {{ attention_block() }} as first_key
        from unnest(heads.positions) as position
    ) as tail
    offset 0
) as block
cross join lateral (
    select
        block.sequence_id,
        block.head,
        query.position,
        (
            select {{ db_function('vector_sum') }}(
                element.value * {{ broadcast('element.weight', 'block.size') }}
            )
            from (
                select
                    unnest(block.values[:query.position - block.first_key + 1]) as value,
                    unnest(
                        subvector(
                            query.weight, block.first_key + 1, {{ attention_block() }}
                        )::real[]
                    ) as weight
            ) as element
        ) as activation
    from (
        select
            unnest(block.positions) as position,
            unnest(block.weights) as weight
    ) as query
    where query.position >= block.first_key
        and query.position < block.first_key + {{ attention_block() }} - 1
    offset 0
) as part
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
    {{ return(64) }}
{%- endmacro %}
