{#-
    linear() and matmul() by blocks of weights: to find a row of weights on its page
    takes longer than its inner product (0.5 and 0.1 microseconds for 768 numbers). So
    where several places meet the weights, 64 rows become one row of 64 columns, which
    stays in the processor's cache while every place meets it. docs/design.md has the
    figures; resident.sql keeps such blocks in the session's memory for single tokens.
-#}

{% macro postgres__linear(input, weights, activation, residual, gated) -%}
{{ dbt_nn.parallel_matmul(input, weights) -}}
with {{ dbt_nn.linear_products(input, weights) }}

select
    {{ dbt_nn.place('product') }},
    {% set y = 'product.activation' -%}
    {%- if activation -%}
        {%- set y = dbt_nn.elementwise(activation, y) -%}
    {%- endif -%}
    {%- if gated -%}
        {%- set y = dbt_nn.flushed(y, 'tiny.x') ~ ' * '
            ~ dbt_nn.flushed('gated.activation', 'tiny.x') -%}
    {%- endif -%}
    {%- if residual -%}
        {%- set y = y ~ ' + residual.activation' -%}
    {%- endif -%}
    {{ y }} as activation
from product
{%- for name, layer in {'gated': gated, 'residual': residual}.items() if layer %}
inner join {{ layer }} as {{ name }}
    using ({{ dbt_nn.place_columns() | join(', ') }})
{%- endfor %}
{%- if gated %}
cross join lateral (
    select subvector(
        {{ dbt_nn.constant_vector(2 ** -44, 16000) }}, 1, vector_dims(gated.activation)
    ) as x
    offset 0
) as tiny
{%- endif %}
{%- endmacro %}


{#- The products of a layer's places with weights: two common table expressions, of which
    `product` (place, activation) is the second. -#}
{% macro linear_products(input, weights) -%}
x as {{ 'materialized ' if dbt_nn.way() != 'one' }}(
    select {{ dbt_nn.place('x') }}, {{ dbt_nn.detoasted('x.activation') }} as activation
    from {{ dbt_nn.at_frontier(input, 'x') }}
    where {{ dbt_nn.in_band('x') }}
),

product as (
    {{ dbt_nn.matmul_rows('x', weights) | indent }}
)
{%- endmacro %}


{% macro postgres__matmul(x, weights, as, banded) -%}
    (
        select {{ dbt_nn.db_function('vector_sum' if as == 'vector' else 'array_sum') }}(
            partial.y order by partial.chunk
        )
        from (
            select
                input.chunk,
                array(
                    select (inner_product(w.weight, input.activation) + w.bias)::real
                    from {{ weights }} as w
                    where w.chunk = input.chunk
                    {%- if banded %}
                        and w.feature
                            >= {{ dbt_nn.first_block(weights, dbt_nn.band_start()) }} * {{ dbt_nn.feature_block() }}
                        and w.feature
                            < {{ dbt_nn.first_block(weights, dbt_nn.band_end()) }} * {{ dbt_nn.feature_block() }}
                    {%- endif %}
                    order by w.feature
                ){{ '::vector' if as == 'vector' }} as y
            from {{ dbt_nn.input_chunks(x, weights) | indent(12) }} as input
        ) as partial
    )
{%- endmacro %}


{#-
    The same for every row of a relation: a SELECT.

    x         [places, in]     relation: (place, activation), the vectors in
                               memory: each is read once for a block, and
                               detoasted() saves fetching it as often
    -> (place, activation), activation as matmul() gives it

    One row meets the weights as they are read. Several share the reading: a
    block of weights becomes one row, which stays in the processor's cache while
    it meets every row of x. Its weights are columns w0, w1, ..., so that one
    expression has all their products and no node of the plan runs for each.
    `offset 0` keeps the blocks in the outer loop.
-#}
{% macro matmul_rows(x, weights, as='vector', banded=false) -%}
    {{ return(adapter.dispatch('matmul_rows', 'dbt_nn')(x, weights, as, banded)) }}
{%- endmacro %}


{% macro postgres__matmul_rows(x, weights, as, banded) -%}
{{ dbt_nn.stored_matrix(weights, as) }}
{%- if dbt_nn.way() == 'several' -%}
{{ dbt_nn.joined_products(dbt_nn.resident_products(x), as) }}
{%- elif dbt_nn.way() == 'one' -%}
select
    {{ dbt_nn.place(x) }},
    {{ dbt_nn.resident_function(this, one=true) }}({{ x }}.activation) as activation
from {{ x }}
{%- else -%}
select
    {{ dbt_nn.place(x) }},
    {{ dbt_nn.matmul(x ~ '.activation', weights, as, banded) | indent(4) }} as activation
from {{ x }}
where not {{ dbt_nn.has_several_rows(x) }}

union all

(
    {{ dbt_nn.joined_products(dbt_nn.stored_products(x, weights, banded), as) | indent }}
)
{%- endif -%}
{%- endmacro %}


{#-
    The products of each block of weights with several rows of x: a SELECT of (place,
    block, chunk, outputs vector), outputs with the block's features. The database
    functions columns_of() and products() are inlined when the statement is planned.
-#}
{% macro stored_products(x, weights, banded) -%}
select
    {{ dbt_nn.place('input') }},
    blocks.number as block,
    columns.chunk,
    {{ dbt_nn.db_function('products') }}(columns, input.activation) + blocks.biases as outputs
from (
    {{ dbt_nn.stored_blocks(weights, banded) | indent }}
    where {{ dbt_nn.has_several_rows(x) }}
    offset 0
) as blocks
cross join lateral {{ dbt_nn.db_function('columns_of') }}(blocks.chunk, blocks.weights) as columns
cross join lateral (
    select
        {{ dbt_nn.place(x) }},
        {{ dbt_nn.input_chunk(x ~ '.activation', 'columns.chunk', weights) }} as activation
    from {{ x }}
    offset 0
) as input
offset 0
{%- endmacro %}


{#- Blocks of weights: a SELECT of (chunk, number, biases vector, weights, an array). -#}
{% macro stored_blocks(weights, banded=false) -%}
select
    input.chunk,
    block.number,
    w.biases,
    w.weights
from generate_series(0, (select max(chunk) from {{ weights }})) as input (chunk)
cross join generate_series(
    {{ dbt_nn.first_block(weights, dbt_nn.band_start()) if banded else 0 }},
    {{ dbt_nn.first_block(weights, dbt_nn.band_end()) if banded else dbt_nn.block_count(weights) }} - 1
) as block (number)
cross join lateral (
    select
        array_agg(weight order by feature) as weights,
        array_agg(bias order by feature)::vector as biases
    from {{ weights }}
    where chunk = input.chunk
        and feature >= block.number * {{ dbt_nn.feature_block() }}
        and feature < (block.number + 1) * {{ dbt_nn.feature_block() }}
) as w
{%- endmacro %}


{#- Such products put together, the chunks' added: a SELECT (place, activation). -#}
{% macro joined_products(products, as) -%}
with products as (
    {{ products | indent }}
),

sums as (
    select
        {{ dbt_nn.place('products') }},
        products.block,
        {{ dbt_nn.db_function('vector_sum') }}(products.outputs order by products.chunk) as outputs
    from products
    group by {{ dbt_nn.place('products') }}, products.block
)

{% if as == 'array' -%}
{# 32 blocks at a time as a vector, which may have 16,000 numbers #}
select
    {{ dbt_nn.place('part') }},
    {{ dbt_nn.db_function('array_concat') }}(
        part.outputs::real[] order by part.number
    ) as activation
from (
    select
        {{ dbt_nn.place('sums') }},
        sums.block / 32 as number,
        {{ dbt_nn.db_function('vector_concat') }}(sums.outputs order by sums.block) as outputs
    from sums
    group by {{ dbt_nn.place('sums') }}, sums.block / 32
) as part
group by {{ dbt_nn.place('part') }}
{%- else -%}
select
    {{ dbt_nn.place('sums') }},
    {{ dbt_nn.db_function('vector_concat') }}(sums.outputs order by sums.block) as activation
from sums
group by {{ dbt_nn.place('sums') }}
{%- endif %}
{%- endmacro %}


{#- A condition that is looked at once a statement. -#}
{% macro has_several_rows(x) -%}
    exists (select from {{ x }} offset 1)
{%- endmacro %}


{#- A vector's chunks, see chunk_count(): a FROM item (chunk, activation). -#}
{% macro input_chunks(x, weights) -%}
(
    select chunk, {{ dbt_nn.input_chunk(x, 'chunk', weights) }} as activation
    from generate_series(0, {{ dbt_nn.chunk_count(x) }} - 1) as chunk
    offset 0
)
{%- endmacro %}


{#- The vector itself if it is its only chunk. It has the type of the weights, vector or
    halfvec, so that it is rounded once. -#}
{% macro postgres__input_chunk(x, chunk, weights) -%}
{{ dbt_nn.db_function('chunk_of') }}({{ x }}, {{ chunk }}, (select weight from {{ weights }} where false))
{%- endmacro %}


{#- Features in a block of weights: with 1,920 inputs, half a MiB. -#}
{% macro feature_block() -%}
    {{ return(64) }}
{%- endmacro %}


{#- How many blocks: a scalar expression. -#}
{% macro block_count(weights) -%}
    (select max(feature) / {{ dbt_nn.feature_block() }} + 1 from {{ weights }} where chunk = 0)
{%- endmacro %}


{#- The first block of features from a part of all of them on, see band_start(). -#}
{% macro first_block(weights, start) -%}
    ceil({{ dbt_nn.block_count(weights) }} * {{ start }})::integer
{%- endmacro %}


{#- A vector as a copy in memory, where a table may have it in TOAST. -#}
{% macro detoasted(x) -%}
    subvector({{ x }}, 1, vector_dims({{ x }}))
{%- endmacro %}


{#-
    A vector of more than about 2,000 floats does not fit a page, and would be
    detoasted once for each inner product. So an input of `n` floats is split
    in chunk_count(n) pieces of equal size, the last one shorter, see chunk_of(); the
    loader splits the weights alike.
-#}
{% macro chunk_count(x) -%}
    ((vector_dims({{ x }}) + {{ dbt_nn.longest_chunk() - 1 }}) / {{ dbt_nn.longest_chunk() }})
{%- endmacro %}


{#- The most floats in a chunk. -#}
{% macro longest_chunk() -%}
    {{ return(1920) }}
{%- endmacro %}
