{#-
    A fully connected layer over the frontier: y = f(x W^T + b) * gated + residual.

    input     [places, in]     relation of a layer
    weights   [out, in], [out] one row per output feature: (chunk, feature,
                               weight, bias), split along the input in chunks
                               that fit a page, see chunk_count(); weight is a
                               vector or a halfvec
    residual  [places, out]    relation of a layer, added to the result
    gated     [places, out]    relation of a layer, multiplied with f's result
    -> [places, out]

    Each output is one inner product (pgvector; sums in float32); the chunks'
    partial results add up as vectors.
    Behaves as torch.nn.Linear; the activation as transformers' ACT2FN; with `gated`, the
    linear layer of a gate (Shazeer 2020, "GLU variants"), act_fn(gate_proj(x)) * up.
-#}
{% macro linear(input, weights, activation=none, residual=none, gated=none) -%}
    {%- set kernel = dbt_nn.form(dbt_nn.default__linear, adapter.dispatch('linear', 'dbt_nn')) -%}
    {{ return(kernel(input, weights, activation, residual, gated)) }}
{%- endmacro %}


{% macro default__linear(input, weights, activation, residual, gated) -%}
select
    {{ dbt_nn.place('x') }},
    {% set y = dbt_nn.matmul('x.activation', weights) -%}
    {%- set y = dbt_nn.elementwise(activation, y) if activation else y -%}
    {%- if gated -%}
    (
        select {{ dbt_nn.vector_of('y.value::float8 * gated_by.value', by='y.i') }}
        from {{ dbt_nn.elements_of(y, 'y') }}
        inner join {{ dbt_nn.elements_of('gated.activation', 'gated_by') }} using (i)
    )
    {%- else -%}
    {{ y }}
    {%- endif -%}
    {%- if residual %}
    + residual.activation
    {%- endif %} as activation
from {{ dbt_nn.at_frontier(input, 'x') }}
{%- for name, layer in {'gated': gated, 'residual': residual}.items() if layer %}
inner join {{ layer }} as {{ name }}
    using ({{ dbt_nn.place_columns() | join(', ') }})
{%- endfor %}
{%- endmacro %}


{#-
    W x + b for one vector expression: a scalar subquery.

    x         vector(in)       expression of the enclosing row
    weights   [out, in], [out] as in linear()
    as        'vector', or 'array' (real[]) for more than 16,000 outputs
    banded    for only those features that are the band's, see first_block()
    -> vector(out) or real[out]
-#}
{% macro matmul(x, weights, as='vector', banded=false) -%}
    {%- set kernel = dbt_nn.form(dbt_nn.default__matmul, adapter.dispatch('matmul', 'dbt_nn')) -%}
    {{ return(kernel(x, weights, as, banded)) }}
{%- endmacro %}


{#- y = sum over the chunks of (w . x) + b, a feature. -#}
{% macro default__matmul(x, weights, as, banded) -%}
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
