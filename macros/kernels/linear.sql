{#-
    A fully connected layer over the frontier: y = f(x W^T + b) + residual.

    input     [places, in]     relation of a layer
    weights   [out, in], [out] one row per output feature: (chunk, feature,
                               weight, bias), split along the input in chunks
                               that fit a page, see chunk_count(); weight is a
                               vector or a halfvec
    residual  [places, out]    relation of a layer, added to the result
    -> [places, out]

    Each output is one inner product (pgvector; sums in float32); the chunks'
    partial results add up as vectors.
    Behaves as torch.nn.Linear; the activation as transformers' ACT2FN.
-#}
{% macro linear(input, weights, activation=none, residual=none) -%}
    {%- set kernel = dbt_nn.form(dbt_nn.default__linear, adapter.dispatch('linear', 'dbt_nn')) -%}
    {{ return(kernel(input, weights, activation, residual)) }}
{%- endmacro %}


{% macro default__linear(input, weights, activation, residual) -%}
select
    {{ dbt_nn.place('x') }},
    {% set y = dbt_nn.matmul('x.activation', weights) -%}
    {{ dbt_nn.elementwise(activation, y) if activation else y }}
    {%- if residual %}
    + residual.activation
    {%- endif %} as activation
from {{ dbt_nn.at_frontier(input, 'x') }}
{%- if residual %}
inner join {{ residual }} as residual
    using ({{ dbt_nn.place_columns() | join(', ') }})
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
    {%- set kernel = dbt_nn.form(dbt_nn.default__matmul, adapter.dispatch('matmul', 'dbt_nn')) -%}
    {{ return(kernel(x, weights, as, banded, products)) }}
{%- endmacro %}


{#- y = sum over the chunks of (w . x) + b, a feature. -#}
{% macro default__matmul(x, weights, as, banded, products) -%}
    (
        select
            {% if as == 'vector' -%}
            {{ dbt_nn.vector_of('y.value', by='y.feature') }}
            {%- else -%}
            array_agg(y.value::real order by y.feature)
            {%- endif %}
        from (
            select
                w.feature,
                sum({{ dbt_nn.dot('w.weight', dbt_nn.input_chunk(x, 'w.chunk', weights)) | indent(16) }} + w.bias) as value
            from {{ weights }} as w
            group by w.feature
        ) as y
    )
{%- endmacro %}
