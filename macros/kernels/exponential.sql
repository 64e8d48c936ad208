{#-
    exp(x) for x up to 709: Postgres raises an error where exp() underflows,
    so what is below `lowest` stays there.
-#}
{% macro bounded_exp(x, lowest=-700) -%}
    exp(greatest({{ x }}, {{ lowest }}))
{%- endmacro %}


{#-
    exp() of each element of a vector by products of vectors, some twenty times
    as fast as one by one: exp(x) = exp(x / 2^s)^(2^s), where x / 2^s is at most
    1/4 and six terms of the Taylor series are exact in float32. The relative
    error is about 2^s times that of a float32.

    x              vector(n), already divided by 2^s
    coefficients   exp_coefficients(), made once for many x of up to its n
    squarings      s, made by exp_squarings()
    -> vector(n)
-#}
{% macro vector_exp(x, coefficients, squarings) -%}
    {{ db_function('vector_exp') }}({{ x }}, {{ coefficients }}, {{ squarings }})
{%- endmacro %}


{#-
    exp(x - largest), each element at least e^-40, about 4e-18: no sum of float32
    numbers sees less beside the largest one's 1, and pgvector takes a product below
    float32's range for an error, as that of e^-80 and a value of 1e-12.

    x              vector(n), an expression of the enclosing row
    n, largest     integer and float8: its length and its largest element
    squarings      exp_squarings() of the distance of its bounds
    coefficients   exp_coefficients() of at least n
    -> vector(n), by vector_exp() unless the bounds are too far apart for that
-#}
{% macro exp_below(x, n, largest, squarings, coefficients) -%}
    case
        when {{ squarings }} is not null then {{ vector_exp(
            '(' ~ x ~ ' - ' ~ repeated(largest, n) ~ ') * '
            ~ repeated('1 / 2.0 ^ ' ~ squarings, n),
            coefficients,
            squarings
        ) }}
        else array(
            select {{ bounded_exp('element.x - ' ~ largest, lowest=-40) }}
            from (select unnest({{ x }}::real[]) as x) as element
        )::vector
    end
{%- endmacro %}


{#- 1/6!, 1/5!, ... 1/0! as vectors(n): an array. -#}
{% macro exp_coefficients(n) -%}
    array(
        select {{ repeated('1 / factorial(term)', n) }}
        from generate_series(6, 0, -1) as term
    )
{%- endmacro %}


{#-
    How often to halve x for vector_exp(), |x| <= `bound`: an expression, NULL
    where it would be so often that accuracy or range suffered.
-#}
{% macro exp_squarings(bound) -%}
    (
        select case when bound.x <= 32
            then ceil(ln(greatest(4 * bound.x, 1)) / ln(2))::integer
        end
        from (select {{ bound }} as x) as bound
    )
{%- endmacro %}


{#- A number, or 0 where it is so near to that that pgvector's product of two
    such would underflow, which it takes for an error. -#}
{% macro without_tiny(x) -%}
    case when abs({{ x }}) > 1e-15 then {{ x }} else 0 end
{%- endmacro %}


{#- As broadcast(), in a third of its time for some hundred elements and more. -#}
{% macro repeated(x, n) -%}
    {{ db_function('repeat_vector') }}(array[{{ x }}]::vector, {{ n }})
{%- endmacro %}
