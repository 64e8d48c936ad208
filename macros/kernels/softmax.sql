{#-
    Softmax of an array, its largest element subtracted first.

    x   float8[n], an expression of the enclosing row
    -> vector(n) whose elements sum to 1

    Computed one by one, in float8. An element is at least e^-80: pgvector's
    product would take what is below float32's range for an error, and no sum of
    float32 numbers sees it. unnest() yields the elements in their order and
    nothing here changes it, so the aggregate needs no sort.
    Behaves as torch.softmax.
-#}
{% macro softmax(x) -%}
    {{ return(adapter.dispatch('softmax', 'dbt_nn')(x)) }}
{%- endmacro %}


{% macro postgres__softmax(x) -%}
    (
        select exponentials.x * {{ broadcast('1 / exponentials.total', 'exponentials.n') }}
        from (
            select
                array_agg(shifted.e)::vector as x,
                sum(shifted.e) as total,
                count(*)::integer as n
            from (
                select {{ bounded_exp('element.x - largest.x', lowest=-80) }} as e
                from (
                    select max(element.x) as x
                    from (select unnest({{ x }}) as x) as element
                ) as largest
                cross join (select unnest({{ x }}) as x) as element
                offset 0
            ) as shifted
        ) as exponentials
    )
{%- endmacro %}
