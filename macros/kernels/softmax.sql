{#-
    Softmax of an array, its largest element subtracted first.

    x   float8[n], an expression of the enclosing row
    -> real[n], which sums to 1

    Behaves as torch.softmax.
-#}
{% macro softmax(x) -%}
    {{ return(adapter.dispatch('softmax', 'dbt_nn')(x)) }}
{%- endmacro %}


{% macro postgres__softmax(x) -%}
    (
        select array_agg((exponential.e / exponential.total)::real order by exponential.i)
        from (
            select
                shifted.i,
                {{ bounded_exp('shifted.x') }} as e,
                sum({{ bounded_exp('shifted.x') }}) over () as total
            from (
                select
                    element.i,
                    element.x - max(element.x) over () as x
                from unnest({{ x }}) with ordinality as element (x, i)
            ) as shifted
        ) as exponential
    )
{%- endmacro %}


{#-
    exp(x) for x up to 709: Postgres raises an error where exp() underflows,
    so what is below 1e-304 stays there.
-#}
{% macro bounded_exp(x) -%}
    exp(greatest({{ x }}, -700))
{%- endmacro %}
