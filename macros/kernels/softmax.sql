{#-
    Softmax of an array, its largest element subtracted first.

    x              float8[n], an expression of the enclosing row
    coefficients   exp_coefficients() of at least n, for a long x: then exp() is of
                   the whole vector, see vector_exp(), if x does not vary too much
    -> vector(n) whose elements sum to 1

    Behaves as torch.softmax.
-#}
{% macro softmax(x, coefficients=none) -%}
    {{ return(adapter.dispatch('softmax', 'dbt_nn')(x, coefficients)) }}
{%- endmacro %}


{% macro postgres__softmax(x, coefficients) -%}
{%- if not coefficients -%}
    {{ softmax_by_element(x) }}
{%- else -%}
    (
        select case
            when e.x is null then {{ softmax_by_element(x) | indent(12) }}
            else e.x * {{ broadcast(
                '1 / inner_product(e.x, ' ~ broadcast('1', 'e.n') ~ ')', 'e.n'
            ) }}
        end
        from (
            select
                spread.n,
                case when spread.squarings is not null then
                    {{ vector_exp(
                        '(' ~ x ~ '::vector - ' ~ broadcast('spread.largest', 'spread.n')
                        ~ ') * ' ~ broadcast('1 / 2.0 ^ spread.squarings', 'spread.n'),
                        coefficients,
                        'spread.squarings'
                    ) }}
                end as x
            from (
                select
                    elements.*,
                    {{ exp_squarings('elements.largest - elements.smallest') }} as squarings
                from (
                    select
                        max(element.x) as largest,
                        min(element.x) as smallest,
                        count(*)::integer as n
                    from (select unnest({{ x }}) as x) as element
                ) as elements
                offset 0
            ) as spread
            offset 0
        ) as e
    )
{%- endif -%}
{%- endmacro %}


{#-
    The same one by one, in float8. An element is at least e^-80: pgvector's
    product would take what is below float32's range for an error, and no sum of
    float32 numbers sees it. unnest() yields the elements in their order and
    nothing here changes it, so the aggregate needs no sort.
-#}
{% macro softmax_by_element(x) -%}
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
