{#-
    DDL of what attention.sql calls. PostgreSQL inlines the first three when it plans a
    statement: the products of a row of blocks are one expression there, and no node of
    the plan runs for each.

        key_products(keys, query)       the inner products of a query and each key of a
                                        block, as a vector
        value_products(values, weight)  the inner products of a block's weights and each
                                        of the features in a row, features_in_row() or
                                        fewer
        first_products(columns, x, n)   the inner products of x with the first n of
                                        columns_of() up to 64 vectors
        few_products(columns, x)        with all of them: as products(), but those past
                                        the last one are not computed
        scaled_exp(x, scale, constants) see scaled_exp_constants() in exponential.sql
        after_zeros(n, x)               x with so many zeros before it
        transposed(x)                   [positions][n] to [n][positions], of
                                        value_blocks()[0] positions
-#}
{% macro create_attention_functions() -%}
    {{ dbt_nn.drop_of_another_type('key_products', 'vector[], vector', 'vector') }}
    create or replace function {{ dbt_nn.db_function('key_products') }} (
        keys vector[], query vector
    ) returns vector language sql immutable parallel safe as $body$
        select array[
            {%- for i in range(dbt_nn.key_block()) %}
            inner_product(keys[{{ i + 1 }}], query){{ ',' if not loop.last }}
            {%- endfor %}
        ]::vector
    $body$;

    create or replace function {{ dbt_nn.db_function('value_products') }} (
        "values" vector[], weight vector
    ) returns vector language sql immutable parallel safe as $body$
        select subvector(array[
            {%- for i in range(dbt_nn.features_in_row()) %}
            coalesce(inner_product("values"[{{ i + 1 }}], weight), 0){{ ',' if not loop.last }}
            {%- endfor %}
        ]::vector, 1, cardinality("values"))
    $body$;

    create or replace function {{ dbt_nn.db_function('first_products') }} (
        columns {{ dbt_nn.db_function('vector_columns') }}, x vector, n integer
    ) returns vector language sql immutable parallel safe as $body$
        select subvector((case
            {%- for columns in range(8, dbt_nn.feature_block() + 1, 8) %}
            when n <= {{ columns }} then array[
                {%- for i in range(columns) %}
                inner_product((columns).w{{ i }}, x){{ ',' if not loop.last }}
                {%- endfor %}
            ]
            {%- endfor %}
        end)::vector, 1, n)
    $body$;

    create or replace function {{ dbt_nn.db_function('few_products') }} (
        columns {{ dbt_nn.db_function('vector_columns') }}, x vector
    ) returns vector language sql immutable parallel safe as $body$
        select {{ dbt_nn.db_function('first_products') }}(columns, x, (columns).n)
    $body$;

    {{ dbt_nn.create_softmax_function() }}

    {# See scaled_exp_constants() in exponential.sql. With 1 added and taken away
       again x is a multiple of 2^-24, so that no product of it underflows. #}
    create or replace function {{ dbt_nn.db_function('scaled_exp') }} (
        x vector, scale float8, constants vector
    ) returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        {%- set length = dbt_nn.scaled_exp_length() %}
        n constant integer := vector_dims(x);
        one constant vector := subvector(constants, {{ 6 * length + 1 }}, n);
        power vector;
        bound float8;
        squarings integer;
        e vector := subvector(constants, 1, n);
    begin
        x := x + one - one;
        if vector_norm(x) * scale > 1e5 then
            return null;
        end if;
        power := x * x;
        power := power * power;
        bound := sqrt(sqrt(vector_norm(power))) * scale;
        if bound > 21 then
            return null;
        end if;
        squarings := ceil(ln(greatest(4 * bound, 1)) / ln(2));
        x := x * subvector(constants, (7 + squarings) * {{ length }} + 1, n);
        {%- for i in range(1, 6) %}
        e := e * x + subvector(constants, {{ i * length + 1 }}, n);
        {%- endfor %}
        e := e * x + one;
        for i in 1..squarings loop
            e := e * e;
        end loop;
        return e;
    end
    $body$;

    create or replace function {{ dbt_nn.db_function('after_zeros') }} (
        n integer, x vector
    ) returns vector language sql immutable parallel safe as $body$
        select case
            when n > 0 then {{ dbt_nn.db_function('repeat_vector') }}('[0]', n) || x
            else x
        end
    $body$;

    create or replace function {{ dbt_nn.db_function('transposed') }} (x vector[])
    returns vector[] language plpgsql immutable strict parallel safe as $body$
    begin
        return array(
            select array[
                {%- for i in range(dbt_nn.value_blocks()[0]) %}
                element.x{{ i }}{{ ',' if not loop.last }}
                {%- endfor %}
            ]::vector
            from (
                select
                    {%- for i in range(dbt_nn.value_blocks()[0]) %}
                    unnest(x[{{ i + 1 }}]::real[]) as x{{ i }}{{ ',' if not loop.last }}
                    {%- endfor %}
            ) as element
        );
    end
    $body$;
{%- endmacro %}
