{#-
    Softmax of an array, its largest element subtracted first.

    x   float8[n], an expression of the enclosing row
    -> vector(n) whose elements sum to 1

    Computed in float8. Behaves as torch.softmax.
-#}
{% macro softmax(x) -%}
    {%- set kernel = dbt_nn.form(dbt_nn.default__softmax, adapter.dispatch('softmax', 'dbt_nn')) -%}
    {{ return(kernel(x)) }}
{%- endmacro %}


{% macro default__softmax(x) -%}
    (
        select {{ dbt_nn.vector_of('exponential.x / exponential.total', by='exponential.i') }}
        from (
            select
                shifted.i,
                {{ dbt_nn.bounded_exp('shifted.x') }} as x,
                sum({{ dbt_nn.bounded_exp('shifted.x') }}) over () as total
            from (
                select
                    element.i,
                    element.x - max(element.x) over () as x
                from unnest({{ x }}) with ordinality as element (x, i)
            ) as shifted
        ) as exponential
    )
{%- endmacro %}
