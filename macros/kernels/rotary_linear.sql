{#-
    Queries or keys of all heads, turned by their place: rotate(norm(x W^T + b)).

    input     [places, in]      relation of a layer
    weights   [out, in], [out]  as in linear(); out = heads * d
    rotary    [places, 2 d]     relation of rotary_embedding(): cos, then sin
    norm      [d]               one row: (weight) of an RMS norm of each head, if there
                                is one, with its epsilon, a scalar SQL expression
    -> [places, out]

    A head's first half a and second half b become a cos - b sin and b cos + a sin: Su et
    al. 2021, in the order of transformers' apply_rotary_pos_emb. The norm of a head is
    Qwen3's (q_norm, k_norm).
-#}
{% macro rotary_linear(input, weights, rotary, norm=none, epsilon=none) -%}
    {%- set kernel = dbt_nn.form(
        dbt_nn.default__rotary_linear, adapter.dispatch('rotary_linear', 'dbt_nn')
    ) -%}
    {{ return(kernel(input, weights, rotary, norm, epsilon)) }}
{%- endmacro %}


{% macro default__rotary_linear(input, weights, rotary, norm, epsilon) -%}
with numbers as (
    select
        {{ dbt_nn.place('x') }},
        element.i,
        (element.i - 1) / head.size as head,
        head.size,
        element.value,
        cos.value as cos,
        sin.value as sin
    from {{ dbt_nn.at_frontier(input, 'x') }}
    inner join {{ rotary }} as rotary
        using ({{ dbt_nn.place_columns() | join(', ') }})
    cross join lateral (select vector_dims(rotary.activation) / 2 as size) as head
    cross join {{ dbt_nn.elements_of(dbt_nn.matmul('x.activation', weights), 'element') }}
    inner join {{ dbt_nn.elements_of('rotary.activation', 'cos') }}
        on cos.i = (element.i - 1) % head.size + 1
    inner join {{ dbt_nn.elements_of('rotary.activation', 'sin') }}
        on sin.i = cos.i + head.size
),

normed as (
    select
        numbers.*,
        {%- if norm %}
        numbers.value / sqrt(
            avg(numbers.value::float8 * numbers.value) over (
                partition by {{ dbt_nn.place('numbers') }}, numbers.head
            ) + {{ epsilon }}
        ) * weight.value as x
    from numbers
    cross join {{ norm }} as norm
    inner join {{ dbt_nn.elements_of('norm.weight', 'weight') }}
        on weight.i = (numbers.i - 1) % numbers.size + 1
        {%- else %}
        numbers.value as x
    from numbers
        {%- endif %}
),

{# the other number of a pair is half a head further, or before #}
turned as (
    select
        normed.*,
        normed.x * normed.cos + coalesce(
            -lead(normed.x, normed.size / 2) over one_head,
            lag(normed.x, normed.size / 2) over one_head
        ) * normed.sin as y
    from normed
    window one_head as (
        partition by {{ dbt_nn.place('normed') }}, normed.head order by normed.i
    )
)

select
    {{ dbt_nn.place('turned') }},
    {{ dbt_nn.vector_of('turned.y', by='turned.i') }} as activation
from turned
group by {{ dbt_nn.place('turned') }}
{%- endmacro %}
