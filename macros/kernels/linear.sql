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
    select {{ place('x') }}, x.activation
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
    -> vector(out) or real[out]
-#}
{% macro matmul(x, weights, as='vector') -%}
    {{ return(adapter.dispatch('matmul', 'dbt_nn')(x, weights, as)) }}
{%- endmacro %}


{% macro postgres__matmul(x, weights, as) -%}
    (
        select {{ db_function('vector_sum' if as == 'vector' else 'array_sum') }}(
            partial.y order by partial.chunk
        )
        from (
            select
                input.chunk,
                array(
                    select (inner_product(w.weight, input.activation) + w.bias)::real
                    from {{ weights }} as w
                    where w.chunk = input.chunk
                    order by w.feature
                ){{ '::vector' if as == 'vector' }} as y
            from {{ input_chunks(x, weights) | indent(12) }} as input
        ) as partial
    )
{%- endmacro %}


{#-
    The same for every row of a relation: a SELECT.

    x         [places, in]     relation: (place, activation)
    -> (place, activation), activation as matmul() gives it

    One row meets the weights as they are read. Several share the reading: a
    block of weights becomes an array, which stays in the processor's cache
    while it meets every row. `offset 0` keeps the blocks in the outer loop.
-#}
{% macro matmul_rows(x, weights, as='vector') -%}
    {{ return(adapter.dispatch('matmul_rows', 'dbt_nn')(x, weights, as)) }}
{%- endmacro %}


{% macro postgres__matmul_rows(x, weights, as) -%}
select {{ place(x) }}, {{ matmul(x ~ '.activation', weights, as) | indent(4) }} as activation
from {{ x }}
where (select count(*) from {{ x }}) = 1

union all

(
    with inputs as materialized (
        select {{ place(x) }}, input.chunk, input.activation
        from {{ x }}
        cross join lateral {{ input_chunks(x ~ '.activation', weights) | indent(8) }} as input
        where (select count(*) from {{ x }}) > 1
    ),

    blocks as (
        select input.chunk, block.number, w.weights, w.bias
        from (select distinct chunk from inputs) as input
        cross join generate_series(
            0, (
                select max(feature) from {{ weights }} where chunk = 0
            ) / {{ feature_block() }}
        ) as block (number)
        cross join lateral (
            select
                array_agg(weight order by feature) as weights,
                array_agg(bias order by feature)::vector as bias
            from {{ weights }}
            where chunk = input.chunk
                and feature >= block.number * {{ feature_block() }}
                and feature < (block.number + 1) * {{ feature_block() }}
        ) as w
        offset 0
    ),

    products as (
        select
            {{ place('product') }},
            blocks.number as block,
            product.chunk,
            product.outputs
        from blocks
        cross join lateral (
            select
                {{ place('inputs') }},
                inputs.chunk,
                array(
                    select inner_product(w.weight, inputs.activation)
                    from (select unnest(blocks.weights) as weight) as w
                )::vector + blocks.bias as outputs
            from inputs
            where inputs.chunk = blocks.chunk
            offset 0
        ) as product
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
        {{ place(x) }},
        array(
            select unnest(sums.outputs::real[])
            from sums
            where ({{ place('sums') }}) = ({{ place(x) }})
            order by sums.block
        ) as activation
    from {{ x }}
    where (select count(*) from {{ x }}) > 1
    {%- else -%}
    select
        {{ place('sums') }},
        {{ db_function('vector_concat') }}(sums.outputs order by sums.block) as activation
    from sums
    group by {{ place('sums') }}
    {%- endif %}
)
{%- endmacro %}


{#-
    A vector's chunks, see chunk_count(): a FROM item (chunk, activation). They have
    the type of the weights, vector or halfvec, so that each is rounded once.
-#}
{% macro input_chunks(x, weights) -%}
(
    select
        chunk,
        coalesce((select weight from {{ weights }} where false), subvector(
            {{ x }}, chunk * {{ chunk_size(x) }} + 1, {{ chunk_size(x) }}
        )) as activation
    from generate_series(0, {{ chunk_count(x) }} - 1) as chunk
    offset 0
)
{%- endmacro %}


{#- Features in a block of weights: with 1,920 inputs, half a MiB. -#}
{% macro feature_block() -%}
    64
{%- endmacro %}


{#-
    A vector of more than about 2,000 floats does not fit a page, and would be
    detoasted once for each inner product. So an input of `n` floats is split
    in chunk_count(n) pieces of chunk_size(n), the last one shorter; the loader
    (scripts/checkpoint.py) splits the weights alike.
-#}
{% macro chunk_count(x) -%}
    ceil(vector_dims({{ x }}) / 1920.0)::integer
{%- endmacro %}


{% macro chunk_size(x) -%}
    ceil(vector_dims({{ x }}) / ceil(vector_dims({{ x }}) / 1920.0))::integer
{%- endmacro %}
