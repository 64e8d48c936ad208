{#-
    The softmax of attention's scores s by products of vectors: that of s is
    (exp(s / 2) / |exp(s / 2)|)^2. No maximum is looked for, and no number is met by itself.

    exp(x) = exp(x / 2^k)^(2^k), where x / 2^k is at most 1/4 and six terms of the Taylor
    series are exact in float32. The relative error is about 2^k times that of a float32. An
    8-norm bounds the numbers, at most a few times too high. Above 21 they are taken from
    their mean, as a softmax is of differences. If that is too far as well, exp() is
    computed one by one. Below, no product of two of the exponentials, or of their
    parts of 1, is out of float32's range.

    Vectors of equal numbers are constants of the function's plan, made once a session.
-#}


{#- The function softmax_of_halves(x), vector(n) -> vector(n): the softmax of 2 x. With 1
    added and taken away again x is a multiple of 2^-24, so that no product of it
    underflows. -#}
{% macro create_softmax_function() -%}
    create or replace function {{ dbt_nn.db_function('softmax_of_halves') }} (x vector)
    returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        n constant integer := vector_dims(x);
        half constant vector := x;
        bound float8;
        halvings integer;
        e vector;
    begin
        for i in 1..2 loop
            bound := null;
            if vector_norm(x) < 1e5 then
                x := x + {{ dbt_nn.equal_numbers('1') }} - {{ dbt_nn.equal_numbers('1') }};
                e := x * x;
                bound := sqrt(sqrt(vector_norm(e * e)));
            end if;
            exit when bound <= 21;
            if i = 2 then
                return {{ dbt_nn.softmax('(half + half)::real[]') | indent(16) }};
            end if;
            x := x - {{ dbt_nn.repeated(
                'inner_product(x, ' ~ dbt_nn.equal_numbers('1') ~ ') / n', 'n'
            ) }};
        end loop;
        halvings := ceil(ln(greatest(4 * bound, 1)) / ln(2));
        x := x * case halvings
            {%- for k in range(7) %}
            when {{ k }} then {{ dbt_nn.equal_numbers(2 ** -k) }}
            {%- endfor %}
            else {{ dbt_nn.equal_numbers(2 ** -7) }}
        end;
        e := {{ '(' * 5 }}{{ dbt_nn.equal_numbers(1 / 720) }}
            {%- for divisor in (120, 24, 6, 2, 1) %}
            * x + {{ dbt_nn.equal_numbers(1 / divisor) }})
            {%- endfor %}
            * x + {{ dbt_nn.equal_numbers('1') }};
        for i in 1..halvings loop
            e := e * e;
        end loop;
        e := l2_normalize(e);
        return e * e;
    end
    $body$;
{%- endmacro %}


{#- A vector of n equal numbers in such a function: an expression. -#}
{% macro equal_numbers(number) -%}
    case
        when n <= 1024 then subvector({{ dbt_nn.constant_vector(number, 1024) }}, 1, n)
        else {{ dbt_nn.db_function('repeat_vector') }}('[{{ number }}]', n)
    end
{%- endmacro %}
