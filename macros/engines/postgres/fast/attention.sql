{#-
    attention() with products of vectors, where the plain form has a row for each pair
    of a query and a key. Over all places of an image: spatial_attention.sql; of a text:
    whole_attention.sql; of a prompt, causal: prompt_attention.sql.

    Causal, for a token of each text:
    A score is an inner product of a query and a key; a sum over a block's values is
    one of the block's weights and a row of its transposed values. Only the keys and
    values after a query's last whole block are met one by one. So a place's output
    is the same, bit for bit, whether later places are there already (prefill) or not
    (decoding). Keys and values lie in rows that fill a page: a token at context 1,000
    took 1.35 times as long with a row for all heads of a position.

    With a window a query's scores and weights begin at its `origin`, the first position of
    the long block of values where its window begins. Weights before the window are 0.
-#}

{% macro postgres__attention(
    query, key, value, heads, head_size, causal, blocks, kv_heads, window
) -%}
    {%- if causal and blocks and heads -%}
        {%- do dbt_nn.say('has_step', true) -%}
        {%- if dbt_nn.way() in ('alone', 'band') -%}
            {{ return(dbt_nn.prompt_attention(
                query, key, value, heads, blocks, kv_heads, window
            )) }}
        {%- endif -%}
        {{ return(dbt_nn.causal_attention(
            query, key, value, heads, blocks, kv_heads, window
        )) }}
    {%- elif not causal and head_size and dbt_nn.place_columns() == ['image_id', 'y', 'x'] -%}
        {{ return(dbt_nn.spatial_attention(query, key, value, head_size)) }}
    {%- elif not causal and dbt_nn.place_columns() == ['sequence_id', 'position'] -%}
        {{ return(dbt_nn.whole_attention(query, key, value, heads, head_size)) }}
    {%- endif -%}
    {{ return(dbt_nn.default__attention(
        query, key, value, heads, head_size, causal, blocks, kv_heads, window
    )) }}
{%- endmacro %}


{% macro causal_attention(query, key, value, heads, blocks, kv_heads, window) -%}
{# each head of the queries, see half_scaled(); its keys and values are of `kv_head`, and
   `start` features are before theirs. Those of the newest places are read once for all
   heads. #}
with queries as (
    select
        x.sequence_id,
        x.position,
        head.number as head,
        head.number / x.queries_a_key as kv_head,
        x.size,
        head.number / x.queries_a_key * x.size as start,
        {%- if window %}
        x.first,
        {{ dbt_nn.window_origin('x.first') }} as origin,
        {%- endif %}
        subvector(x.activation, x.size * head.number + 1, x.size) as activation,
        x.newest_keys,
        x.newest_values
    from (
        select
            x.sequence_id,
            x.position,
            {{ dbt_nn.newest_of_text(key, 'x', dbt_nn.key_block()) | indent(12) }} as newest_keys,
            {{ dbt_nn.newest_of_text(value, 'x', dbt_nn.value_blocks()[0]) | indent(12) }} as newest_values,
            {%- if window %}
            {{ dbt_nn.window_start('x.position', window) }} as first,
            {%- endif %}
            shape.heads,
            shape.queries_a_key,
            shape.size,
            {{ dbt_nn.half_scaled('x.activation', 'shape') }} as activation
        from {{ dbt_nn.at_frontier(query, 'x') }}
        cross join (
            {{ dbt_nn.heads_shape(query, heads, kv_heads) | indent(12) }}
        ) as shape
        offset 0
    ) as x
    cross join generate_series(0, x.heads - 1) as head (number)
    offset 0
),

weights as (
    select
        queries.sequence_id,
        queries.position,
        queries.head,
        queries.kv_head,
        queries.size,
        queries.start,
        {%- if window %}
        queries.origin,
        {%- endif %}
        queries.newest_values,
        {{ dbt_nn.windowed_softmax(
            'queries', dbt_nn.attention_scores('queries', blocks, window), window
        ) | indent(8) }} as weight
    from queries
    offset 0
),

outputs as (
    select
        weights.sequence_id,
        weights.position,
        weights.head,
        (
            {{ dbt_nn.attention_output('weights', blocks, window) | indent(12) }}
        ) as activation
    from weights
    offset 0
)

select
    outputs.sequence_id,
    outputs.position,
    {{ dbt_nn.db_function('vector_concat') }}(
        outputs.activation order by outputs.head
    ) as activation
from outputs
group by outputs.sequence_id, outputs.position
{%- endmacro %}


{#-
    How queries are cut in heads: a SELECT of one row (heads, queries_a_key, size, tiny,
    scale), or none. So many heads of queries share one of keys and values; the last two
    are vectors(n) for half_scaled().
-#}
{% macro heads_shape(query, heads, kv_heads=none) -%}
select
    first.heads,
    {{ 'first.heads / ' ~ kv_heads if kv_heads else '1' }} as queries_a_key,
    first.n / first.heads as size,
    {{ dbt_nn.repeated(dbt_nn.tiny_number(), 'first.n') }} as tiny,
    {{ dbt_nn.repeated('0.5 / sqrt(first.n / first.heads)', 'first.n') }} as scale
from (
    select
        vector_dims(x.activation) as n,
        {{ heads }} as heads
    from {{ query }} as x
    limit 1
) as first
offset 0
{%- endmacro %}


{#- Queries so that their products with keys are half the scores, for
    softmax_of_halves(). -#}
{% macro half_scaled(x, shape) -%}
    {{ dbt_nn.flushed(x, shape ~ '.tiny') }} * {{ shape }}.scale
{%- endmacro %}


{#- A layer's activations at the places of a row's text after its last whole block of so
    many positions, up to its own: an expression, an array. -#}
{% macro newest_of_text(input, row, positions) -%}
array(
    select newest.activation
    from {{ input }} as newest
    where newest.sequence_id = {{ row }}.sequence_id
        and newest.position >= ({{ row }}.position + 1) / {{ positions }} * {{ positions }}
        and newest.position <= {{ row }}.position
    order by newest.position
)
{%- endmacro %}


{#- The first position that a query attends to: an expression. -#}
{% macro window_start(position, window) -%}
    greatest({{ position }} - {{ window }} + 1, 0)
{%- endmacro %}


{#- Where a query's scores begin, by the first position that it attends to: an expression. -#}
{% macro window_origin(first) -%}
    {{ first }} / {{ dbt_nn.value_blocks()[1] }} * {{ dbt_nn.value_blocks()[1] }}
{%- endmacro %}


{#- The weights of a row of queries, from its origin on, by the half scores from there
    on, a SELECT of a vector: an expression. -#}
{% macro windowed_softmax(query, scores, window) -%}
{%- if window -%}
{{ dbt_nn.db_function('after_zeros') }}(
    {{ query }}.first - {{ query }}.origin,
    {{ dbt_nn.db_function('softmax_of_halves') }}(subvector(
        (
            {{ scores | indent(12) }}
        ),
        {{ query }}.first - {{ query }}.origin + 1,
        {{ query }}.position - {{ query }}.first + 1
    ))
)
{%- else -%}
{{ dbt_nn.db_function('softmax_of_halves') }}((
    {{ scores | indent(4) }}
))
{%- endif -%}
{%- endmacro %}


{#- Half the scores of a row of `queries` over its keys: a SELECT of a vector. -#}
{% macro attention_scores(query, blocks, window=none) -%}
{%- set positions = dbt_nn.key_block() -%}
{%- set first = '(' ~ query ~ '.position + 1) / ' ~ positions -%}
select {{ dbt_nn.db_function('vector_concat') }}(part.x)
from (
    (
        select {{ dbt_nn.db_function('key_products') }}(keys.x, {{ query }}.activation) as x
        from {{ blocks }} as keys
        where {{ first }} > 0
            and keys.sequence_id = {{ query }}.sequence_id
            and keys.head = {{ query }}.kv_head
            and keys.positions = {{ positions }}
            and keys.part = 0
            {%- if window %}
            and keys.block >= {{ query }}.origin / {{ positions }}
            {%- endif %}
            and keys.block < {{ first }}
        order by keys.block
    )

    union all

    select array_agg(
        inner_product(
            subvector(newest.x, {{ query }}.start + 1, {{ query }}.size),
            {{ query }}.activation
        )
    )::vector
    from (select unnest({{ query }}.newest_keys) as x) as newest
) as part
{%- endmacro %}


{#- The sum of the values by a row of `weights`: a SELECT of a vector. The blocks come
    first, the long ones before the short ones, then values one by one. -#}
{% macro attention_output(weights, blocks, window=none) -%}
{%- set places = '(' ~ weights ~ '.position + 1)' -%}
{%- set origin = weights ~ '.origin' if window else '0' -%}
{%- set short, long = dbt_nn.value_blocks() -%}
select {{ dbt_nn.db_function('vector_sum') }}(part.activation)
from (
    select {{ dbt_nn.db_function('vector_concat') }}(
        features.activation order by features.part
    ) as activation
    from (
        select
            v.part,
            {{ dbt_nn.db_function('vector_sum') }}(
                v.x order by v.positions desc, v.block
            ) as activation
        from (
            {# the products are sorted, and not the values #}
            select
                weighted.part,
                weighted.positions,
                weighted.block,
                {{ dbt_nn.db_function('value_products') }}(weighted.x, weighted.weight) as x
            from (
                {# `weight` is computed once for all products #}
                select both_lengths.*
                from (
                    {{ dbt_nn.blocks_of_values(
                        weights, blocks, long, origin ~ ' / ' ~ long, places ~ ' / ' ~ long, window
                    ) | indent(20) }}

                    union all

                    {{ dbt_nn.blocks_of_values(
                        weights,
                        blocks,
                        short,
                        places ~ ' / ' ~ long ~ ' * ' ~ long // short,
                        places ~ ' / ' ~ short,
                        window
                    ) | indent(20) }}
                ) as both_lengths
                offset 0
            ) as weighted
            offset 0
        ) as v
        group by v.part
    ) as features

    union all

    select {{ dbt_nn.weighted_value('newest.x', 'newest.weight', weights ~ '.size') | indent }}
    from (
        select
            subvector(newest.x, {{ weights }}.start + 1, {{ weights }}.size) as x,
            newest.weight
        from (
            select
                unnest({{ weights }}.newest_values) as x,
                unnest(subvector(
                    {{ weights }}.weight,
                    {{ places }} / {{ short }} * {{ short }}{{ ' - ' ~ origin if window }} + 1,
                    {{ places }} % {{ short }}
                )::real[]) as weight
            where {{ places }} % {{ short }} > 0
        ) as newest
        offset 0
    ) as newest
) as part
{%- endmacro %}


{#- Blocks `first` to `last` - 1 of the values, of so many positions each, and the part of
    the weights that is for each: a SELECT. -#}
{% macro blocks_of_values(weights, blocks, positions, first, last, window=none) -%}
select
    v.part,
    v.positions,
    v.block,
    v.x,
    subvector(
        {{ weights }}.weight,
        v.block * {{ positions }}{{ ' - %s.origin' | format(weights) if window }} + 1,
        {{ positions }}
    ) as weight
from {{ blocks }} as v
where {{ first }} < {{ last }}
    and v.sequence_id = {{ weights }}.sequence_id
    and v.head = {{ weights }}.kv_head
    and v.positions = {{ positions }}
    and v.part > 0
    and v.block >= {{ first }}
    and v.block < {{ last }}
{%- endmacro %}


{#- A value times its weight. The product of a small weight and a number near 0 would
    underflow. -#}
{% macro weighted_value(value, weight, size) -%}
case
    when {{ weight }} > 1e-7 then {{ value }}
    else {{ dbt_nn.flushed(value, dbt_nn.tiny_vector(size)) }}
end * {{ dbt_nn.broadcast(
    'case when ' ~ weight ~ ' > 1e-17 then ' ~ weight ~ ' else 0 end', size
) }}
{%- endmacro %}


{% macro postgres__attention_blocks(key, value, heads) -%}
{%- set short, long = dbt_nn.value_blocks() -%}
with complete as (
    select
        last.sequence_id,
        last.position,
        blocks.positions
    from {{ dbt_nn.frontier() }} as last
    inner join (
        values ({{ dbt_nn.key_block() }}), ({{ short }}), ({{ long }})
    ) as blocks (positions)
        on last.position % blocks.positions = blocks.positions - 1
),

{# the values of each short block that is complete, or part of a long one that is #}
transposed as materialized (
    select
        parts.*,
        {{ dbt_nn.db_function('transposed') }}(array(
            {{ dbt_nn.newest_rows(value, 'parts') | indent(12) }}
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
            {{ dbt_nn.newest_rows(key, 'complete') | indent(12) }}
        ) as x
    from complete
    where complete.positions = {{ dbt_nn.key_block() }}

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
            heads.head * heads.size + (part - 1) * {{ dbt_nn.features_in_row() }} + 1
            :heads.head * heads.size + least(part * {{ dbt_nn.features_in_row() }}, heads.size)
        ]
    end as x
from heads
cross join lateral generate_series(
    (not heads.is_keys)::integer,
    case
        when heads.is_keys then 0
        else (heads.size + {{ dbt_nn.features_in_row() - 1 }}) / {{ dbt_nn.features_in_row() }}
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


{#- Positions in a block of keys: with 64 features a head they fill a page. -#}
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
