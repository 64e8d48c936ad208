{#-
    softmax() without a sort: unnest() yields the elements in their order, and nothing
    here changes it. The total divides them as vectors.
-#}

{% macro postgres__softmax(x) -%}
    (
        select exponentials.x * {{ dbt_nn.broadcast('1 / exponentials.total', 'exponentials.n') }}
        from (
            select
                array_agg(shifted.e)::vector as x,
                sum(shifted.e) as total,
                count(*)::integer as n
            from (
                select {{ dbt_nn.bounded_exp('element.x - largest.x', lowest=-80) }} as e
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
