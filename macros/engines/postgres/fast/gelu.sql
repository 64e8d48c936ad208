{#-
    GELU and SiLU of whole vectors. One number after another takes 95 ns (erf()) or 120 to 140
    ns (exp()) a number, as long as the matrix product before it: 40 ns to unnest and
    gather them, the rest for the function. An operation of pgvector on two vectors
    takes 0.6 ns a number, and 26 of them, 17 ns, are enough; 30 for the tanh form.

    GELU is x (1/2 + e(x)), where e is odd and goes from -1/2 to 1/2. pgvector adds and
    multiplies; it has no division and no exp(), and a single polynomial for so steep a
    step would need a degree beyond what float32 bears. But t (3/2 - t^2) brings t
    nearer to 1 / sqrt(2) or -1 / sqrt(2). Four of that kind, each with a number of its
    own instead of 3/2, are an odd step of degree 81 for three operations each, and

        t = scale x;  t = t (c - t^2) for each c;  e = t p(k - t^2)

    with a short p has all of e's shape. tools/fit_gelu.py fits the numbers: up to the
    bound e is off by as much as float32 rounds it. SiLU is the same with another e, whose
    ends are less steep: 37 operations leave e off by 4e-7.

    x comes in parts of 768 numbers, or 1,024, which parts of an image's lines often have
    (group_norm.sql), so that the vectors of equal numbers are constants
    of the function's plan, made once a session. A part with a number beyond the bound
    is computed one by one, and so is a vector that is much shorter than a part.
-#}


{#-
    Of each function: the numbers in a part, the largest |x| that it is used for, and tools/fit_gelu.py's numbers,
    which hold a little further; p's are of the highest power first. 1/2 + e is off by
    6e-8 where it should be 0, so that gelu(-26) is 1.6e-6 at most. The largest number of
    all-MiniLM-L6-v2 is 24.
-#}
{% macro gelu_polynomials() -%}
    {{ return({
        'gelu': {
            'size': 768,
            'bound': 26,
            'scale': '0.0382621066',
            'cubics': ['1.9206216', '1.60594314', '1.38494741', '1.37374272'],
            'k': '0.384071819',
            'p': ['4.66413253', '2.04952733', '1.05031754', '0.806796149'],
        },
        'gelu_new': {
            'size': 768,
            'bound': 12,
            'scale': '0.0522697378',
            'cubics': ['1.4587689', '1.71588359', '1.53834447', '1.52874351'],
            'k': '0.529297822',
            'p': [
                '-0.25292412', '0.45421965', '-0.0776944861', '0.899800097',
                '0.649180004', '0.687258276'
            ],
        },
        'silu': {
            'size': 1024,
            'bound': 16,
            'scale': '0.0421310685',
            'cubics': ['1.48813549', '1.48426192', '1.48274565', '1.52291924'],
            'k': '0.523271215',
            'p': [
                '3.47882135', '-5.63487087', '4.79034058', '-1.71815566',
                '0.927262656', '0.318170171', '0.568804125', '0.691292178'
            ],
        },
    }) }}
{%- endmacro %}


{#-
    The functions vector_gelu(x), vector_gelu_new(x) and vector_silu(x), vector(n) ->
    vector(n).

    No |x| is beyond the bound b where the sums of |x - b| and |x + b| are 2 b for each
    number. Sums in float32 are off by less than 1, which is within what the fit spares.
-#}
{% macro create_gelu_functions() -%}
    {%- for name, fit in dbt_nn.gelu_polynomials().items() %}
    {%- set size = fit.size %}
    create or replace function {{ dbt_nn.db_function('vector_' ~ name) }} (x vector)
    returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        n constant integer := vector_dims(x);
        start integer := 0;
        first integer;
        part vector;
        t vector;
        w vector;
        y vector;
    begin
        {# as long as a part takes #}
        if n < 128 then
            return {{ dbt_nn.one_by_one(name, 'x') | indent(12) }};
        end if;
        if n < {{ size }} then
            x := {{ dbt_nn.db_function('repeat_vector') }}(x, {{ size }});
        end if;
        while start < n loop
            {# the last part may overlap the one before it #}
            first := least(start, vector_dims(x) - {{ size }});
            part := subvector(x, first + 1, {{ size }});
            if l1_distance(part, {{ dbt_nn.constant_vector(fit.bound, size) }})
                + l1_distance(part, {{ dbt_nn.constant_vector(-fit.bound, size) }})
                < {{ 2 * fit.bound * size + 1 }}
            then
                part := {{ dbt_nn.flushed(
                    'part', dbt_nn.constant_vector(2 ** -44, size)
                ) }};
                t := part * {{ dbt_nn.constant_vector(fit.scale, size) }};
                {%- for c in fit.cubics %}
                t := t * ({{ dbt_nn.constant_vector(c, size) }} - t * t);
                {%- endfor %}
                w := {{ dbt_nn.constant_vector(fit.k, size) }} - t * t;
                t := t * (
                    {%- for c in fit.p %}
                    {{ '(' * (loop.length - 2) if loop.first }}
                    {{- dbt_nn.constant_vector(c, size) }}
                    {{- ')' if loop.index not in (1, loop.length) }}
                    {{- ' * w +' if not loop.last }}
                    {%- endfor %}
                );
                part := part * ({{ dbt_nn.constant_vector('0.5', size) }} + t);
            else
                part := {{ dbt_nn.one_by_one(name, 'part') | indent(16) }};
            end if;
            if n - start < {{ size }} then
                part := subvector(part, start - first + 1, n - start);
            end if;
            y := coalesce(y || part, part);
            start := start + {{ size }};
        end loop;
        return y;
    end
    $body$;
    {%- endfor %}
{%- endmacro %}


{#- A number again and again, as a constant of the plan. -#}
{% macro constant_vector(x, n) -%}
    {{ dbt_nn.db_function('repeat_vector') }}('[{{ x }}]', {{ n }})
{%- endmacro %}
