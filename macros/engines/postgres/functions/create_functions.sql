{#-
    The database functions that the kernels and the tokenizer call, created before
    networks and unit tests are run (dbt run builds no function resources). They live
    in the target schema; db_function() gives their qualified name.
-#}
{% macro create_functions() -%}
    {%- if dbt_nn.calls_functions() %}
    {#
        Two runs that start at once take turns: `create or replace` fails with
        "tuple concurrently updated" where they meet.
    #}
    select pg_advisory_xact_lock(hashtext('dbt_nn.create_functions'));

    create schema if not exists {{ adapter.quote(target.schema) }};

    {#
        What the rows of each layer were made of, see fingerprint() in layer.sql.
        Unlogged as the layers are: a crash of the server empties both.
    #}
    create unlogged table if not exists {{ dbt_nn.db_function('fingerprints') }} (
        relation text primary key,
        fingerprint text not null
    );

    create or replace aggregate {{ dbt_nn.db_function('vector_sum') }} (vector) (
        sfunc = vector_add, stype = vector, parallel = safe
    );

    create or replace aggregate {{ dbt_nn.db_function('vector_concat') }} (vector) (
        sfunc = vector_concat, stype = vector, parallel = safe
    );

    create or replace function {{ dbt_nn.db_function('array_add') }} (a real[], b real[])
    returns real[] language sql immutable parallel safe strict as $body$
        select array_agg(x + y order by i)
        from unnest(a, b) with ordinality as element (x, y, i)
    $body$;

    create or replace aggregate {{ dbt_nn.db_function('array_sum') }} (real[]) (
        sfunc = {{ dbt_nn.db_function('array_add') }}, stype = real[], parallel = safe
    );

    create or replace aggregate {{ dbt_nn.db_function('array_concat') }} (real[]) (
        sfunc = array_cat, stype = real[], parallel = safe
    );

    {# The vector again and again, to a length that is not below its own. #}
    create or replace function {{ dbt_nn.db_function('repeat_vector') }} (
        x vector, length integer
    ) returns vector language plpgsql immutable strict parallel safe as $body$
    begin
        {# a round of this loop takes longer than a short vector's copies #}
        while vector_dims(x) * 4 <= length loop
            x := x || x || x || x;
        end loop;
        if vector_dims(x) * 2 <= length then
            x := x || x;
        end if;
        if vector_dims(x) < length then
            x := x || subvector(x, 1, length - vector_dims(x));
        end if;
        return x;
    end
    $body$;

    {#
        The inner products of a query with keys that lie skewed, see
        spatial_attention.sql: the query again and again times the keys, whose slices
        are added; halves while they have as many. One function, since a call and a
        round of its loops take longer than what they do to a short vector.
    #}
    create or replace function {{ dbt_nn.db_function('skewed_products') }} (
        query vector, keys vector, slices integer
    ) returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        length integer := vector_dims(keys);
        x vector := query;
        total vector;
    begin
        while vector_dims(x) * 4 <= length loop
            x := x || x || x || x;
        end loop;
        while vector_dims(x) * 2 <= length loop
            x := x || x;
        end loop;
        if vector_dims(x) < length then
            x := x || subvector(x, 1, length - vector_dims(x));
        end if;
        x := x * keys;
        while slices % 2 = 0 loop
            slices := slices / 2;
            length := length / 2;
            x := subvector(x, 1, length) + subvector(x, length + 1, length);
        end loop;
        if slices = 1 then
            return x;
        end if;
        length := length / slices;
        total := subvector(x, 1, length);
        for i in 1..slices - 1 loop
            total := total + subvector(x, i * length + 1, length);
        end loop;
        return total;
    end
    $body$;

    {# See vector_exp() in exponential.sql. #}
    create or replace function {{ dbt_nn.db_function('vector_exp') }} (
        x vector, coefficients vector, squarings integer
    ) returns vector language plpgsql immutable strict parallel safe as $body$
    declare
        n constant integer := vector_dims(x);
        e vector := {{ '(' * 5 }}subvector(coefficients, 1, n)
            {%- for i in range(1, 7) %}
            * x + subvector(coefficients, {{ i }} * n + 1, n){{ ')' if not loop.last }}
            {%- endfor %};
    begin
        for i in 1..squarings loop
            e := e * e;
        end loop;
        return e;
    end
    $body$;

    {{ dbt_nn.create_gelu_functions() }}

    {#
        Standard normal numbers, a function of the arguments alone: Box and
        Muller 1958 on two uniform numbers from a digest.
    #}
    create or replace function {{ dbt_nn.db_function('gaussian_noise') }} (
        seed bigint, step integer, y integer, x integer, channels integer
    ) returns vector language sql immutable strict parallel safe as $body$
        select array_agg(
            sqrt(-2 * ln((uniform.one + 0.5) / 2.0 ^ 52))
            * cos(2 * pi() * uniform.other / 2.0 ^ 52)
            order by uniform.channel
        )::vector
        from (
            select
                channel,
                ('x' || left(digest, 13))::bit(52)::bigint as one,
                ('x' || right(digest, 13))::bit(52)::bigint as other
            from (
                select
                    channel,
                    md5(format('%s/%s/%s/%s/%s', seed, step, y, x, channel)) as digest
                from generate_series(0, channels - 1) as channel
            ) as hashed
        ) as uniform
    $body$;

    {{ dbt_nn.create_matmul_functions() }}

    {{ dbt_nn.create_attention_functions() }}

    {{ dbt_nn.create_rotary_functions() }}

    {{ dbt_nn.create_resident_blocks() }}

    {{ dbt_nn.create_input_functions() }}

    {{ dbt_nn.create_pair_function() }}

    {# The last n bytes. #}
    create or replace function {{ dbt_nn.db_function('right_bytes') }} (bytes bytea, n integer)
    returns bytea language sql immutable strict parallel safe as $body$
        select substring(bytes from greatest(octet_length(bytes) - n, 0) + 1)
    $body$;

    {{ dbt_nn.create_tokenizer_functions() }}

    {{ dbt_nn.create_chat_functions() }}

    {{ dbt_nn.create_form_functions() }}

    {#
        The text that a token adds after the bytes before it: of a character
        that is split over tokens nothing until it is whole, unless no more
        will come.
    #}
    create or replace function {{ dbt_nn.db_function('next_piece') }} (
        bytes bytea, token bytea, is_last boolean
    ) returns text language sql immutable strict parallel safe as $body$
        select {{ dbt_nn.db_function('decode_utf8') }}(
            case
                when is_last then pending.bytes
                else {{ dbt_nn.db_function('complete_utf8') }}(pending.bytes)
            end
        )
        from (
            select substr(
                bytes, length({{ dbt_nn.db_function('complete_utf8') }}(bytes)) + 1
            ) || token as bytes
        ) as pending
    $body$;
    {%- endif -%}
{%- endmacro %}


{#- A statement that drops a function which an older version of the package made with
    another type of result: `create or replace` keeps the type. -#}
{% macro drop_of_another_type(name, arguments, type) -%}
    {%- set signature = dbt_nn.db_function(name) ~ '(' ~ arguments ~ ')' -%}
    do $body$
    begin
        if exists (
            select from pg_proc
            where oid = to_regprocedure({{ dbt_nn.literal(signature) }})
                and prorettype <> {{ dbt_nn.literal(type) }}::regtype
        ) then
            drop function {{ signature }};
        end if;
    end
    $body$;
{%- endmacro %}


{#- Whether the command compiles calls of the functions into something new. -#}
{% macro calls_functions() -%}
    {%- set unit_tests = [] -%}
    {%- for id in selected_resources if id.startswith('unit_test.') -%}
        {%- do unit_tests.append(id) -%}
    {%- endfor -%}
    {{ return(dbt_nn.builds_networks() or (
        execute and flags.WHICH in ('build', 'test') and unit_tests != []
    )) }}
{%- endmacro %}


{% macro db_function(name) -%}
    {{ adapter.quote(target.schema) }}.{{ name }}
{%- endmacro %}
