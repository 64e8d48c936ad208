{#-
    exp() of each element of a vector by products of vectors, some twenty times
    as fast as one by one: exp(x) = exp(x / 2^s)^(2^s), where x / 2^s is at most
    1/4 and six terms of the Taylor series are exact in float32. The relative
    error is about 2^s times that of a float32.

    x              vector(n), already divided by 2^s
    coefficients   exp_coefficients() of the length of x, made once for many x
    squarings      s, made by exp_squarings()
    -> vector(n)
-#}
{% macro vector_exp(x, coefficients, squarings) -%}
    {{ dbt_nn.db_function('vector_exp') }}({{ x }}, {{ coefficients }}, {{ squarings }})
{%- endmacro %}


{#- 1/6!, 1/5!, ... 1/0!, each n times, side by side: a vector(7 n). An array of vectors
    would be copied at each call. -#}
{% macro exp_coefficients(n) -%}
    (
        select {{ dbt_nn.db_function('vector_concat') }}(
            {{ dbt_nn.repeated('1 / factorial(term)', n) }} order by term desc
        )
        from generate_series(0, 6) as term
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


{#-
    A vector whose elements near 0 are 0, so that pgvector's product of it and another
    such does not underflow: what is added and taken away again, 2^-44, leaves
    multiples of 2^-68, 3e-21. A norm adds at least 1e-12 to the variance, beside
    which that is nothing.

    x      vector(n), an expression
    tiny   tiny_vector(n)
-#}
{% macro flushed(x, tiny) -%}
    ({{ x }} + {{ tiny }} - {{ tiny }})
{%- endmacro %}


{% macro tiny_vector(n) -%}
    {{ dbt_nn.broadcast(dbt_nn.tiny_number(), n) }}
{%- endmacro %}


{% macro tiny_number() -%}
    (2 ^ -44)
{%- endmacro %}


{#- As broadcast(), in a third of its time for some hundred elements and more. -#}
{% macro repeated(x, n) -%}
    {{ dbt_nn.db_function('repeat_vector') }}(array[{{ x }}]::vector, {{ n }})
{%- endmacro %}


{#-
    exp(x * scale) of each element of a vector by scaled_exp(), a database function,
    which finds out how often to halve x: an 8-norm bounds its elements, at most a few
    times too high. NULL where that is above 21: so no product of two results, or of
    their parts of 1, is out of float32's range.

    scale   float8
    -> what the function takes as `constants`: vectors of scaled_exp_length(), the most
       elements that x may have, side by side: 1/6! ... 1/0!, scale, scale / 2, ...
-#}
{% macro scaled_exp_constants(scale) -%}
    (
        select {{ dbt_nn.db_function('vector_concat') }}(
            {{ dbt_nn.repeated('number.x', dbt_nn.scaled_exp_length()) }} order by number.i
        )
        from (
            select
                i,
                case when i < 7 then 1 / factorial(6 - i) else {{ scale }} / 2.0 ^ (i - 7) end as x
            from generate_series(0, 14) as i
            offset 0
        ) as number
    )
{%- endmacro %}


{% macro scaled_exp_length() -%}
    {{ return(1000) }}
{%- endmacro %}
