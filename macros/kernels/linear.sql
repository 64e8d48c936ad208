{#-
    A fully connected layer over the frontier: y = f(x W^T + b) + residual.

    input     [places, in]     relation of a layer
    weights   [out, in], [out] one row per output feature: (chunk, feature,
                               weight, bias), split along the input in chunks
                               that fit a page, see chunk_size()
    residual  [places, out]    relation of a layer, added to the result
    -> [places, out]

    Each output is one inner product (pgvector, float32) over an ordered scan
    of the weights; the chunks' partial results add up as vectors.
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
    {{ matmul_rows('x', weights) }}
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
    {%- set cast = '::vector' if as == 'vector' else '' -%}
    case
        when {{ chunk_count(x) }} = 1 then (
            select array_agg(
                (inner_product(w.weight, {{ x }}) + w.bias)::real
                order by w.feature
            )
            from {{ weights }} as w
            where w.chunk = 0
        ){{ cast }}
        else (
            select {{ db_function('vector_sum' if as == 'vector' else 'array_sum') }}(
                partial.y order by partial.chunk
            )
            from (
                select
                    x_chunk.chunk,
                    (
                        select array_agg(
                            (inner_product(w.weight, x_chunk.x) + w.bias)::real
                            order by w.feature
                        )
                        from {{ weights }} as w
                        where w.chunk = x_chunk.chunk
                    ){{ cast }} as y
                from (
                    select
                        chunk,
                        {{ x_chunk(x, x) }} as x
                    from generate_series(0, {{ chunk_count(x) }} - 1) as chunk
                    offset 0
                ) as x_chunk
            ) as partial
        )
    end
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


{#- The floats of `x` in the chunk `chunk`, of as many as `like` is split in. -#}
{% macro x_chunk(x, like) -%}
    subvector(
        {{ x }}, chunk * {{ chunk_size(like) }} + 1, {{ chunk_size(like) }}
    )
{%- endmacro %}
