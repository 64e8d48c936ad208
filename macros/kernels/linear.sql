{#-
    A fully connected layer over the frontier: y = f(x W^T + b) + residual.

    input     [places, in]     relation of a layer
    weights   [out, in], [out] one row per output feature: (chunk, feature,
                               weight, bias), split along the input in chunks
                               that fit a page, see chunk_size(); weight is a
                               vector or a halfvec
    residual  [places, out]    relation of a layer, added to the result
    -> [places, out]

    Each output is one inner product (pgvector; sums in float32); the chunks'
    partial results add up as vectors.
    Behaves as torch.nn.Linear; the activation as transformers' ACT2FN.
-#}
{% macro linear(input, weights, activation=none, residual=none) -%}
    {{ return(adapter.dispatch('linear', 'dbt_nn')(
        input, weights, activation, residual
    )) }}
{%- endmacro %}


{% macro postgres__linear(input, weights, activation, residual) -%}
{{ parallel_matmul(input, weights) }}
with x as materialized (
    select {{ place('x') }}, {{ detoasted('x.activation') }} as activation
    from {{ at_frontier(input, 'x') }}
    where {{ in_band('x') }}
),

product as (
    {{ matmul_rows('x', weights) | indent }}
)

select
    {{ place('product') }},
    {% set y = 'product.activation' -%}
    {%- if activation -%}
        {%- set y = elementwise(activation, y) -%}
    {%- endif -%}
    {%- if residual -%}
        {%- set y = y ~ ' + residual.activation' -%}
    {%- endif -%}
    {{ y }} as activation
from product
{%- if residual %}
inner join {{ residual }} as residual
    using ({{ place_columns() | join(', ') }})
{%- endif %}
{%- endmacro %}


{#-
    W x + b for one vector expression: a scalar subquery.

    x         vector(in)       expression of the enclosing row
    weights   [out, in], [out] as in linear()
    as        'vector', or 'array' (real[]) for more than 16,000 outputs
    banded    for only those features that are the band's, see first_block()
    products  name of a function of (chunk, input) that gives a chunk's products,
              real[out], instead of the table
    -> vector(out) or real[out]
-#}
{% macro matmul(x, weights, as='vector', banded=false, products=none) -%}
    {{ return(adapter.dispatch('matmul', 'dbt_nn')(x, weights, as, banded, products)) }}
{%- endmacro %}


{% macro postgres__matmul(x, weights, as, banded, products) -%}
    (
        select {{ db_function('vector_sum' if as == 'vector' else 'array_sum') }}(
            partial.y order by partial.chunk
        )
        from (
            select
                input.chunk,
                {% if products -%}
                {{ products }}(input.chunk, input.activation)
                {%- else -%}
                array(
                    select (inner_product(w.weight, input.activation) + w.bias)::real
                    from {{ weights }} as w
                    where w.chunk = input.chunk
                    {%- if banded %}
                        and w.feature
                            >= {{ first_block(weights, band_start()) }} * {{ feature_block() }}
                        and w.feature
                            < {{ first_block(weights, band_end()) }} * {{ feature_block() }}
                    {%- endif %}
                    order by w.feature
                )
                {%- endif %}{{ '::vector' if as == 'vector' }} as y
            from {{ input_chunks(x, weights) | indent(12) }} as input
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
{{ stored(
    weights,
    joined_products(resident_products(x), as),
    matmul(x ~ '.activation', weights, as, products='resident_products_of_one'),
    x
) }}
select
    {{ place(x) }},
    {{ matmul(x ~ '.activation', weights, as, banded) | indent(4) }} as activation
from {{ x }}
where not {{ has_several_rows(x) }}

union all

(
    {{ joined_products(stored_products(x, weights, banded), as) | indent }}
)
{{ end_of_stored() }}
{%- endmacro %}


{#-
    The products of each block of weights with several rows of x: a SELECT of (place,
    block, chunk, outputs vector), outputs with the block's features.
-#}
{% macro stored_products(x, weights, banded) -%}
with blocks as (
    select
        stored.chunk,
        stored.number,
        stored.biases,
        {{ block_columns('stored.weights', 'w', feature_block()) | indent }}
    from (
        {{ stored_blocks(weights, banded) | indent(8) }}
    ) as stored
    where {{ has_several_rows(x) }}
    offset 0
)

select
    {{ place('product') }},
    blocks.number as block,
    blocks.chunk,
    product.outputs
from blocks
cross join lateral (
    select
        {{ place('input') }},
        {{ block_products('blocks.w', 'input.activation', feature_block()) | indent(8) }}
        + blocks.biases as outputs
    from (
        select
            {{ place(x) }},
            {{ input_chunk(x ~ '.activation', 'blocks.chunk', weights) | indent(12) }} as activation
        from {{ x }}
        offset 0
    ) as input
    offset 0
) as product
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
    {{ first_block(weights, band_start()) if banded else 0 }},
    {{ first_block(weights, band_end()) if banded else block_count(weights) }} - 1
) as block (number)
cross join lateral (
    select
        array_agg(weight order by feature) as weights,
        array_agg(bias order by feature)::vector as biases
    from {{ weights }}
    where chunk = input.chunk
        and feature >= block.number * {{ feature_block() }}
        and feature < (block.number + 1) * {{ feature_block() }}
) as w
{%- endmacro %}


{#- Such products put together, the chunks' added: a SELECT (place, activation). -#}
{% macro joined_products(products, as) -%}
with products as (
    {{ products | indent }}
),

sums as {{ 'materialized ' if as == 'array' }}(
    select
        {{ place('products') }},
        products.block,
        {{ db_function('vector_sum') }}(products.outputs order by products.chunk) as outputs
    from products
    group by {{ place('products') }}, products.block
)

{% if as == 'array' -%}
select
    {{ place('whole') }},
    array(
        select unnest(sums.outputs::real[])
        from sums
        where ({{ place('sums') }}) = ({{ place('whole') }})
        order by sums.block
    ) as activation
from (
    select distinct {{ place('sums') }} from sums
) as whole
{%- else -%}
select
    {{ place('sums') }},
    {{ db_function('vector_concat') }}(sums.outputs order by sums.block) as activation
from sums
group by {{ place('sums') }}
{%- endif %}
{%- endmacro %}


{#- A condition that is looked at once a statement. -#}
{% macro has_several_rows(x) -%}
    exists (select from {{ x }} offset 1)
{%- endmacro %}


{#- A vector's chunks, see chunk_count(): a FROM item (chunk, activation). -#}
{% macro input_chunks(x, weights) -%}
(
    select chunk, {{ input_chunk(x, 'chunk', weights) | indent }} as activation
    from generate_series(0, {{ chunk_count(x) }} - 1) as chunk
    offset 0
)
{%- endmacro %}


{#- One of them, the vector itself if it is the only one. It has the type of the
    weights, vector or halfvec, so that it is rounded once. -#}
{% macro input_chunk(x, chunk, weights) -%}
coalesce((select weight from {{ weights }} where false), case
    when vector_dims({{ x }}) <= {{ longest_chunk() }} then {{ x }}
    else subvector({{ x }}, {{ chunk }} * {{ chunk_size(x) }} + 1, {{ chunk_size(x) }})
end)
{%- endmacro %}


{#- The first n elements of an array as columns of a select list, prefix0,
    prefix1, ..., and prefix_count, how many it has. Where it is shorter, its first
    one stands in. -#}
{% macro block_columns(elements, prefix, n) -%}
    {%- for i in range(n) -%}
        coalesce({{ elements }}[{{ i + 1 }}], {{ elements }}[1]) as {{ prefix }}{{ i }},
    {% endfor -%}
    cardinality({{ elements }}) as {{ prefix }}_count
{%- endmacro %}


{#- The inner products of x and each of those elements: a vector(prefix_count). -#}
{% macro block_products(prefix, x, n) -%}
subvector(array[
    {%- for i in range(n) %}
    inner_product({{ prefix }}{{ i }}, {{ x }}){{ ',' if not loop.last }}
    {%- endfor %}
]::vector, 1, {{ prefix }}_count)
{%- endmacro %}


{#- Features in a block of weights: with 1,920 inputs, half a MiB. -#}
{% macro feature_block() -%}
    {{ return(64) }}
{%- endmacro %}


{#- How many blocks: a scalar expression. -#}
{% macro block_count(weights) -%}
    (select max(feature) / {{ feature_block() }} + 1 from {{ weights }} where chunk = 0)
{%- endmacro %}


{#- The first block of features from a part of all of them on, see band_start(). -#}
{% macro first_block(weights, start) -%}
    ceil({{ block_count(weights) }} * {{ start }})::integer
{%- endmacro %}


{#- A vector as a copy in memory, where a table may have it in TOAST. -#}
{% macro detoasted(x) -%}
    subvector({{ x }}, 1, vector_dims({{ x }}))
{%- endmacro %}


{#-
    A vector of more than about 2,000 floats does not fit a page, and would be
    detoasted once for each inner product. So an input of `n` floats is split
    in chunk_count(n) pieces of chunk_size(n), the last one shorter; the loader
    (scripts/checkpoint.py) splits the weights alike.
-#}
{% macro chunk_count(x) -%}
    ((vector_dims({{ x }}) + {{ longest_chunk() - 1 }}) / {{ longest_chunk() }})
{%- endmacro %}


{% macro chunk_size(x) -%}
    ((vector_dims({{ x }}) + {{ chunk_count(x) }} - 1) / {{ chunk_count(x) }})
{%- endmacro %}


{#- The most floats in a chunk. -#}
{% macro longest_chunk() -%}
    {{ return(1920) }}
{%- endmacro %}
