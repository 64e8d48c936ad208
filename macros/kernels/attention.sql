{#-
    Causal self-attention with many heads over the frontier:
    softmax(Q K^T / sqrt(d)) V, each query over the keys up to its position.

    query, key, value   [places, n]   relations of layers; the key and value
                                      tables are the KV cache
    blocks              the keys and values of complete blocks of positions, as
                        this reads them: made by attention_blocks()
    heads               scalar SQL expression; d = n / heads
    -> [places, n]      the heads side by side

    A score is an inner product of a query and a key; a sum over a block's values is
    one of the block's weights and a row of its transposed values. Only the keys and
    values after a query's last whole block are met one by one. So a place's output
    is the same, bit for bit, whether later places are there already (prefill) or not
    (decoding).

    Vaswani et al. 2017; behaves as transformers' GPT2Attention without its
    projections.
-#}
{% macro attention(query, key, value, blocks, heads) -%}
    {{ return(adapter.dispatch('attention', 'dbt_nn')(
        query, key, value, blocks, heads
    )) }}
{%- endmacro %}


{% macro postgres__attention(query, key, value, blocks, heads) -%}
{#- A query of a head takes as long as some 250,000 multiply-adds, and 650 for each
    position of the text. -#}
{{ parallel_work(
    '(select count(*) * (250000 + 650 * max(x.position)) from '
    ~ at_frontier(query, 'x') ~ ') * ' ~ heads
) }}
{# each head of the scaled queries; `start` features are before its own #}
with queries as (
    select
        x.sequence_id,
        x.position,
        head.number as head,
        x.size,
        x.size * head.number as start,
        subvector(x.activation, x.size * head.number + 1, x.size) as activation
    from (
        select
            x.sequence_id,
            x.position,
            x.size,
            x.activation * {{ broadcast('1 / sqrt(x.size)', 'vector_dims(x.activation)') }}
            as activation
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
        offset 0
    ) as x
    cross join generate_series(0, {{ heads }} - 1) as head (number)
    offset 0
),

scores as (
    select
        queries.sequence_id,
        queries.position,
        queries.head,
        queries.size,
        queries.start,
        score.x,
        score.largest,
        {{ exp_squarings('score.largest - score.smallest') | indent(8) }} as squarings
    from queries
    cross join lateral (
        {{ attention_scores('queries', key, blocks) | indent(8) }}
    ) as score
    offset 0
),

coefficients as materialized (
    select {{ exp_coefficients('longest.n') }} as x
    from (
        select max(position) + 1 as n
        from {{ at_frontier(query, 'x') }}
    ) as longest
),

{# not normalized: their sum is `total`. The last coefficient, 1/0!, is a vector of ones. #}
weights as (
    select
        e.*,
        inner_product(
            e.weight, subvector((select x[7] from coefficients), 1, e.position + 1)
        ) as total
    from (
        select
            scores.sequence_id,
            scores.position,
            scores.head,
            scores.size,
            scores.start,
            {{ exp_below(
                'scores.x',
                'scores.position + 1',
                'scores.largest',
                'scores.squarings',
                '(select x from coefficients)',
            ) | indent(12) }} as weight
        from scores
        offset 0
    ) as e
    offset 0
),

outputs as (
    select
        weights.sequence_id,
        weights.position,
        weights.head,
        (
            {{ attention_output('weights', value, blocks) | indent(12) }}
        ) * {{ broadcast('1 / weights.total', 'weights.size') }} as activation
    from weights
    offset 0
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
    The scores of a row of attention()'s `queries` over its keys: a SELECT of (x
    vector, largest, smallest).
-#}
{% macro attention_scores(query, key, blocks) -%}
{%- set positions = key_block() -%}
{%- set first = '(' ~ query ~ '.position + 1) / ' ~ positions -%}
{%- set columns = [] -%}
{%- for i in range(positions) -%}
    {%- do columns.append('x' ~ i) -%}
{%- endfor -%}
select
    {{ db_function('vector_concat') }}(part.x order by part.block) as x,
    max(part.largest) as largest,
    min(part.smallest) as smallest
from (
    select
        product.block,
        array[{{ columns | join(', ') }}]::vector as x,
        greatest({{ columns | join(', ') }}) as largest,
        least({{ columns | join(', ') }}) as smallest
    from (
        select
            keys.block,
            {%- for x in columns %}
            inner_product(keys.x[{{ loop.index }}], {{ query }}.activation) as {{ x }}{{ ',' if not loop.last }}
            {%- endfor %}
        from {{ blocks }} as keys
        where keys.sequence_id = {{ query }}.sequence_id
            and keys.head = {{ query }}.head
            and keys.positions = {{ positions }}
            and keys.part = 0
            and keys.block < {{ first }}
        order by keys.block
        offset 0
    ) as product

    union all

    select
        {{ first }},
        array_agg(newest.x order by newest.position)::vector,
        max(newest.x),
        min(newest.x)
    from (
        select
            k.position,
            inner_product(
                subvector(k.activation, {{ query }}.start + 1, {{ query }}.size),
                {{ query }}.activation
            ) as x
        from {{ key }} as k
        where k.sequence_id = {{ query }}.sequence_id
            and k.position >= {{ first }} * {{ positions }}
            and k.position <= {{ query }}.position
        order by k.position
        offset 0
    ) as newest
    having count(*) > 0
) as part
{%- endmacro %}


{#- The sum of the values by a row of attention()'s `weights`: a SELECT of a vector. -#}
{% macro attention_output(weights, value, blocks) -%}
{%- set places = '(' ~ weights ~ '.position + 1)' -%}
{%- set short, long = value_blocks() -%}
select {{ db_function('vector_sum') }}(part.activation order by part.positions desc)
from (
    {{ sum_of_blocks(
        weights, blocks, long, '0', places ~ ' / ' ~ long
    ) | indent }}

    union all

    {{ sum_of_blocks(
        weights,
        blocks,
        short,
        places ~ ' / ' ~ long ~ ' * ' ~ long // short,
        places ~ ' / ' ~ short
    ) | indent }}

    union all

    select
        0,
        {{ db_function('vector_sum') }}(
            subvector(v.activation, {{ weights }}.start + 1, {{ weights }}.size)
            * {{ broadcast('newest.weight[v.position - newest.start + 1]', weights ~ '.size') }}
            order by v.position
        )
    from (
        select
            start,
            subvector(
                {{ weights }}.weight, start + 1, {{ places }} - start
            )::real[] as weight
        from (select {{ places }} / {{ short }} * {{ short }} as start) as newest
        where start < {{ places }}
    ) as newest
    inner join {{ value }} as v
        on v.sequence_id = {{ weights }}.sequence_id
        and v.position >= newest.start
        and v.position <= {{ weights }}.position
    having count(*) > 0
) as part
{%- endmacro %}


{#- The part that is of blocks `first` to `last` - 1 of so many positions each: a SELECT
    of (number, activation), none if there are none. -#}
{% macro sum_of_blocks(weights, blocks, positions, first, last) -%}
select
    {{ positions }} as positions,
    subvector(
        {{ db_function('vector_concat') }}(features.activation order by features.part),
        1,
        {{ weights }}.size
    ) as activation
from (
    select
        v.part,
        {{ db_function('vector_sum') }}(
            array[
                {%- for i in range(features_in_row()) %}
                coalesce(inner_product(v.x[{{ i + 1 }}], v.weight), 0){{ ',' if not loop.last }}
                {%- endfor %}
            ]::vector
            order by v.block
        ) as activation
    from (
        select
            v.part,
            v.block,
            v.x,
            subvector(
                {{ weights }}.weight, v.block * {{ positions }} + 1, {{ positions }}
            ) as weight
        from {{ blocks }} as v
        where v.sequence_id = {{ weights }}.sequence_id
            and v.head = {{ weights }}.head
            and v.positions = {{ positions }}
            and v.part > 0
            and v.block >= {{ first }}
            and v.block < {{ last }}
        order by v.part, v.block
        offset 0
    ) as v
    group by v.part
) as features
having count(*) > 0
{%- endmacro %}


{#-
    What attention() reads of the blocks of positions that the frontier completes, as
    rows of vectors that fill a page at most.

    key, value   [places, n]   relations of layers
    heads        scalar SQL expression; d = n / heads
    -> (sequence_id, head, positions, part, block, x vector[]), block b being the
       `positions` from b * positions on. Part 0 of a block of key_block() positions
       is the head's keys, a vector(d) for each position. Part p > 0 of one of
       value_blocks() positions is its values, transposed: a vector(positions) for
       each of its features from (p - 1) * features_in_row() on.
-#}
{% macro attention_blocks(key, value, heads) -%}
    {{ return(adapter.dispatch('attention_blocks', 'dbt_nn')(key, value, heads)) }}
{%- endmacro %}


{% macro postgres__attention_blocks(key, value, heads) -%}
{%- set short, long = value_blocks() -%}
with complete as (
    select
        last.sequence_id,
        last.position,
        blocks.positions
    from {{ frontier() }} as last
    inner join (
        values ({{ key_block() }}), ({{ short }}), ({{ long }})
    ) as blocks (positions)
        on last.position % blocks.positions = blocks.positions - 1
),

{# the values of each short block that is complete, or part of a long one that is #}
transposed as materialized (
    select
        parts.*,
        {{ db_function('transposed') }}(array(
            {{ newest_rows(value, 'parts') | indent(12) }}
        )) as x
    from (
        select
            part.sequence_id,
            part.position,
            {{ short }} as positions,
            bool_or(part.whole = {{ short }}) as is_short,
            bool_or(part.whole = {{ long }} and part.position = part.last) as ends_long
        from (
            select
                complete.sequence_id,
                complete.positions as whole,
                complete.position as last,
                generate_series(
                    complete.position - complete.positions + {{ short }},
                    complete.position,
                    {{ short }}
                ) as position
            from complete
            where complete.positions in ({{ short }}, {{ long }})
        ) as part
        group by part.sequence_id, part.position
    ) as parts
    offset 0
),

{# the vectors of all heads: of a key's features, or for each feature of the values #}
vectors as (
    select
        complete.*,
        true as is_keys,
        array(
            {{ newest_rows(key, 'complete') | indent(12) }}
        ) as x
    from complete
    where complete.positions = {{ key_block() }}

    union all

    select
        transposed.sequence_id,
        transposed.position,
        transposed.positions,
        false,
        transposed.x
    from transposed
    where transposed.is_short

    union all

    select
        parts.sequence_id,
        parts.position,
        {{ long }},
        false,
        array(
            select {% for i in range(long // short) %}feature.x{{ i }}{{ ' || ' if not loop.last }}{% endfor %}
            from unnest(
                {%- for i in range(long // short) %}
                parts.x{{ i }}{{ ',' if not loop.last }}
                {%- endfor %}
            ) as feature (
                {%- for i in range(long // short) %}x{{ i }}{{ ', ' if not loop.last }}{% endfor -%}
            )
        )
    from (
        select
            transposed.sequence_id,
            transposed.position,
            transposed.ends_long,
            {%- for i in range(long // short) %}
            lag(transposed.x, {{ long // short - 1 - i }}) over side as x{{ i }}{{ ',' if not loop.last }}
            {%- endfor %}
        from transposed
        window side as (
            partition by transposed.sequence_id order by transposed.position
        )
    ) as parts
    where parts.ends_long
),

heads as (
    select
        vectors.*,
        vectors.position / vectors.positions as block,
        head.number as head,
        case
            when vectors.is_keys then vector_dims(vectors.x[1])
            else cardinality(vectors.x)
        end / heads.n as size
    from vectors
    cross join (select {{ heads }} as n) as heads
    cross join lateral generate_series(0, heads.n - 1) as head (number)
    offset 0
)

select
    heads.sequence_id,
    heads.head,
    heads.positions,
    part,
    heads.block,
    case
        when heads.is_keys then array(
            select subvector(element.x, heads.head * heads.size + 1, heads.size)
            from (select unnest(heads.x) as x) as element
        )
        else heads.x[
            heads.head * heads.size + (part - 1) * {{ features_in_row() }} + 1
            :heads.head * heads.size + least(part * {{ features_in_row() }}, heads.size)
        ]
    end as x
from heads
cross join lateral generate_series(
    (not heads.is_keys)::integer,
    case
        when heads.is_keys then 0
        else (heads.size + {{ features_in_row() - 1 }}) / {{ features_in_row() }}
    end
) as part
{%- endmacro %}


{#- A layer's activations at the last `positions` of a row of a sequence: a SELECT. -#}
{% macro newest_rows(input, last) -%}
select x.activation
from {{ input }} as x
where x.sequence_id = {{ last }}.sequence_id
    and x.position > {{ last }}.position - {{ last }}.positions
    and x.position <= {{ last }}.position
order by x.position
{%- endmacro %}


{#- Positions in a block of keys: with 64 features a head, as GPT-2 of every size has,
    they fill a page. -#}
{% macro key_block() -%}
    {{ return(30) }}
{%- endmacro %}


{#- Positions in the blocks of values, a short one and a multiple of it, where a sum
    takes a fourth of the products. -#}
{% macro value_blocks() -%}
    {{ return([15, 60]) }}
{%- endmacro %}


{#- Features of the values in a row. -#}
{% macro features_in_row() -%}
    {{ return(32) }}
{%- endmacro %}
