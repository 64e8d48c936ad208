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
        subvector(x.activation, x.size * head.number + 1, x.size)
        * {{ broadcast('1 / sqrt(x.size)', 'x.size') }} as activation
    from (
        select
            x.sequence_id,
            x.position,
            {{ detoasted('x.activation') }} as activation,
            vector_dims(x.activation) / {{ heads }} as size
        from {{ at_frontier(query, 'x') }}
        where {{ in_band('x') }}
        offset 0
    ) as x
    cross join generate_series(0, {{ heads }} - 1) as head (number)
),

{# a head's part of a block of keys meets every query while it is in the
   processor's cache #}
scores as (
    select
        part.sequence_id,
        part.position,
        part.head,
        part.size,
        {{ db_function('vector_concat') }}(part.score order by part.start) as score
    from (
        select
            block.sequence_id,
            block.start,
            head.number as head,
            {%- for i in range(attention_block()) %}
            subvector(
                block.k{{ i }}, block.size * head.number + 1, block.size
            ) as k{{ i }}{{ ',' if not loop.last }}
            {%- endfor %}
        from (
            select
                keys.sequence_id,
                keys.start,
                keys.size,
                {{ block_columns('keys.x', 'k', attention_block()) | indent(16) }}
            from (
                select
                    last.sequence_id,
                    last.size,
                    block.start,
                    array(
                        select k.activation
                        from {{ key }} as k
                        where k.sequence_id = last.sequence_id
                            and k.position >= block.start
                            and k.position < block.start + {{ attention_block() }}
                        order by k.position
                    ) as x
                from (
                    select sequence_id, size, max(position) as position
                    from queries
                    group by sequence_id, size
                ) as last
                cross join generate_series(
                    0, last.position, {{ attention_block() }}
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
            queries.sequence_id,
            queries.position,
            queries.head,
            queries.size,
            block.start,
            {{ block_products('block.k', 'queries.activation', attention_block()) | indent(12) }}
            as score
        from queries
        where queries.head = block.head
            and queries.position >= block.start
            and queries.sequence_id = block.sequence_id
        offset 0
    ) as part
    group by part.sequence_id, part.position, part.head, part.size
),

sharing as materialized (
    select exists (
        select from queries group by sequence_id, head having count(*) > 1
    ) as several
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

{# Of whole blocks. One position reads its values from the table; several of a
   sequence share the reading, as in matmul_rows(). #}
wholes as (
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
                            and v.feature > weights.size * weights.head
                            and v.feature <= weights.size * (weights.head + 1)
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
                        weights.position + 1 - {{ attention_block() }},
                        {{ attention_block() }}
                    ) as start
                    offset 0
                ) as block
            ) as part
        ) as activation
    from weights
    where weights.position + 1 >= {{ attention_block() }}
        and not (select several from sharing)

    union all

    select
        summed.sequence_id,
        summed.position,
        summed.head,
        {{ db_function('vector_concat') }}(
            summed.activation order by summed.first_feature
        ) as activation
    from (
        select
            part.sequence_id,
            part.position,
            part.head,
            part.first_feature,
            {{ db_function('vector_sum') }}(part.activation order by part.start) as activation
        from (
            select
                values.sequence_id,
                values.start,
                values.head,
                values.first_feature,
                {{ block_columns('values.x', 'v', feature_block()) | indent(16) }}
            from (
                select
                    last.sequence_id,
                    block.start,
                    head.number as head,
                    first_feature,
                    array(
                        select v.activation
                        from {{ value_blocks }} as v
                        where v.sequence_id = last.sequence_id
                            and v.block = block.start / {{ attention_block() }}
                            and v.feature > first_feature
                            and v.feature <= least(
                                first_feature + {{ feature_block() }},
                                last.size * (head.number + 1)
                            )
                        order by v.feature
                    ) as x
                from (
                    select sequence_id, size, max(position) as position
                    from queries
                    group by sequence_id, size
                ) as last
                cross join generate_series(
                    0,
                    last.position + 1 - {{ attention_block() }},
                    {{ attention_block() }}
                ) as block (start)
                cross join generate_series(0, {{ heads }} - 1) as head (number)
                cross join generate_series(
                    last.size * head.number,
                    last.size * (head.number + 1) - 1,
                    {{ feature_block() }}
                ) as first_feature
                where (select several from sharing)
                offset 0
            ) as values
            offset 0
        ) as block
        cross join lateral (
            select
                query.sequence_id,
                query.position,
                query.head,
                block.first_feature,
                block.start,
                {{ block_products('block.v', 'query.weight', feature_block()) | indent(16) }}
                as activation
            from (
                select
                    weights.sequence_id,
                    weights.position,
                    weights.head,
                    subvector(
                        weights.weight, block.start + 1, {{ attention_block() }}
                    ) as weight
                from weights
                where weights.head = block.head
                    and weights.position >= block.start + {{ attention_block() }} - 1
                    and weights.sequence_id = block.sequence_id
                offset 0
            ) as query
            offset 0
        ) as part
        group by part.sequence_id, part.position, part.head, part.first_feature
    ) as summed
    group by summed.sequence_id, summed.position, summed.head
),

{# Of the keys after them, one by one. #}
tails as (
    select part.*
    from (
        select
            last.*,
            head.number as head,
            array(
                select subvector(v.activation, last.size * head.number + 1, last.size)
                from {{ value }} as v
                where v.sequence_id = last.sequence_id
                    and v.position >= last.start
                    and v.position < last.start + {{ attention_block() }}
                order by v.position
            ) as values
        from (
            select distinct
                sequence_id,
                size,
                position / {{ attention_block() }} * {{ attention_block() }} as start
            from queries
        ) as last
        cross join generate_series(0, {{ heads }} - 1) as head (number)
        offset 0
    ) as block
    cross join lateral (
        select
            weights.sequence_id,
            weights.position,
            weights.head,
            (
                select {{ db_function('vector_sum') }}(
                    element.value * {{ broadcast('element.weight', 'block.size') }}
                )
                from (
                    select
                        unnest(block.values[:weights.position - block.start + 1]) as value,
                        unnest(
                            subvector(
                                weights.weight,
                                block.start + 1,
                                {{ attention_block() }}
                            )::real[]
                        ) as weight
                ) as element
            ) as activation
        from weights
        where weights.head = block.head
            and weights.position >= block.start
            and weights.position < block.start + {{ attention_block() }} - 1
            and weights.sequence_id = block.sequence_id
        offset 0
    ) as part
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
