{#-
    Weights in the memory of the session, for all steps after a text's prompt.

    To find a row of weights on its page takes longer than its inner product. What
    a session of PostgreSQL keeps for itself are plans, and a plan has constants: a
    function that is declared immutable and has constant arguments is called once,
    when its statement is planned. resident_blocks(), which reads a table, is declared
    so. A kernel says what its SELECT is with such blocks (stored()); the
    materialization makes the products with them a function of its own, whose plan
    has the blocks as a constant, and compiles that SELECT as well, for the steps of a
    network that may (is_resident()). A batch of one text has another function, which
    goes through the blocks row by row, and has blocks of its own. The numbers are the
    same to the bit.

    The plan ends with the session, and when its table is loaded anew. A row that is
    updated by hand is seen by the next session, so by every run of dbt.
-#}


{#-
    What heads a SELECT that reads `weights` (as in linear()) from their table;
    end_of_stored() ends it. `resident` stands in for it where they are in memory; for
    one text it is `activation`, an expression for the only row of x.
-#}
{% macro stored(weights, resident, activation, x) -%}
    /* stored in {{ weights }}; in memory:
{{ resident }}
or for one text:
select {{ place(x) }}, {{ activation }} as activation from {{ x }}
*/
{%- endmacro %}


{% macro end_of_stored() -%}
    /* end of stored */
{%- endmacro %}


{#- A kernel's products of every row of x with weights in memory: a SELECT of (place,
    block, chunk, outputs). -#}
{% macro resident_products(x) -%}
select
    {{ place('input') }},
    product.block,
    product.chunk,
    product.outputs
from (
    select array_agg({{ x }}.activation order by {{ place(x) }}) as activations
    from {{ x }}
) as inputs
cross join lateral resident_products(inputs.activations) as product
inner join (
    select
        {{ place(x) }},
        row_number() over (order by {{ place(x) }}) as number
    from {{ x }}
) as input using (number)
{%- endmacro %}


{#- The table in a SELECT with such a part; none if it has none. -#}
{% macro stored_weights(sql) -%}
    {%- set found = modules.re.search('/[*] stored in (.*?);', sql) -%}
    {{ return(found.group(1) if found else none) }}
{%- endmacro %}


{#- The SELECT with weights in memory; `one`: for one text. -#}
{% macro resident(relation, sql, one=false) -%}
    {%- set part = modules.re.compile(
        '/[*] stored in .*?:\n(.*?)\n *or for one text:\n(.*?)\n *[*]/.*?'
        ~ modules.re.escape(end_of_stored()),
        modules.re.DOTALL
    ) -%}
    {{- part.sub('\\2' if one else '\\1', sql)
        | replace('resident_products(', resident_function(relation) ~ '(')
        | replace('resident_products_of_one(', resident_function(relation, true) ~ '(') -}}
{%- endmacro %}


{% macro resident_function(relation, one=false) -%}
    {{ adapter.quote(relation.schema) }}.
    {{- adapter.quote(relation.identifier ~ '_resident' ~ ('_one' if one else '')) }}
{%- endmacro %}


{#-
    The functions `<layer>_resident(inputs)`, each block's products with every input,
    and `<layer>_resident_one(chunk, input)`, an input's products with all rows of a
    chunk. They name the table, so that their plans end with it.
-#}
{% macro create_resident_functions(relation, sql) -%}
    {%- set weights = stored_weights(sql) -%}
    {%- set blocks = db_function('resident_blocks') ~ "('" ~ weights
        ~ "'::regclass, (null::" ~ weights ~ ').weight)' -%}
    {%- set input -%}
(
    select
        x.number,
        {{ input_chunk('x.activation', 'blocks.chunk', weights) | indent }} as activation
    from x
    offset 0
) as input
    {%- endset -%}
    create or replace function {{ resident_function(relation) }}(inputs vector[])
    returns table (number bigint, block integer, chunk integer, outputs vector)
    language plpgsql stable
    set plan_cache_mode = force_generic_plan
    as $resident$
    #variable_conflict use_column
    begin
        return query
        with x as materialized (
            select input.number, input.activation
            from unnest(inputs) with ordinality as input (activation, number)
        )

        select
            product.number,
            blocks.number,
            blocks.chunk,
            product.outputs
        from (
            select (held.block).*
            from (
                select unnest({{ blocks }}) as block
                offset 0
            ) as held
            offset 0
        ) as blocks
        cross join lateral (
            select {{ block_columns('blocks.weights', 'w', feature_block()) | indent(12) }}
            offset 0
        ) as block
        cross join lateral (
            select
                input.number,
                {{ block_products('block.w', 'input.activation', feature_block()) | indent(16) }}
                + blocks.biases as outputs
            from {{ input | indent(12) }}
            offset 0
        ) as product;
    end
    $resident$;

    create or replace function {{ resident_function(relation, true) }}(
        chunk integer, input anyelement
    ) returns real[] language plpgsql stable
    set plan_cache_mode = force_generic_plan
    as $resident$
    begin
        return array(
            select (inner_product(w.weight, $2) + w.bias)::real
            from (
                select
                    unnest((held.block).weights) as weight,
                    unnest((held.block).biases::real[]) as bias
                from (
                    select unnest({{ blocks }}) as block
                    where not exists (select from {{ weights }} where false)
                    offset 0
                ) as held
                where (held.block).chunk = $1
            ) as w
        );
    end
    $resident$;
{%- endmacro %}


{#-
    Whether a network's steps take those SELECTs: its checkpoint's tables are not
    larger than the var resident_memory, like '2GB'; null: never.
-#}
{% macro is_resident(network) -%}
    {%- set config = graph.sources[
        ['source', model.package_name, network, 'config'] | join('.')
    ] -%}
    {%- set memory = var('resident_memory', none) -%}
    {{ return(memory is not none and run_query(
        'select ' ~ checkpoint_bytes(config.schema) ~ " <= pg_size_bytes('"
        ~ memory | replace("'", "''") ~ "')"
    ).rows[0][0]) }}
{%- endmacro %}


{#- DDL of resident_blocks(): an array of a table's blocks, see stored_blocks(). The
    second argument is a NULL of the weights' type, vector or halfvec. -#}
{% macro create_resident_blocks() -%}
    {%- for type in ('vector', 'halfvec') %}
    do $body$
    begin
        if to_regtype('{{ db_function(type ~ "_block") }}') is null then
            create type {{ db_function(type ~ '_block') }} as (
                chunk integer, number integer, biases vector, weights {{ type }}[]
            );
        end if;
    end
    $body$;

    create or replace function {{ db_function('resident_blocks') }} (
        stored regclass, type {{ type }}
    ) returns {{ db_function(type ~ '_block') }}[] language plpgsql immutable as $body$
    declare
        blocks {{ db_function(type ~ '_block') }}[];
    begin
        execute replace(
            $select$
            select array_agg(
                (stored.chunk, stored.number, stored.biases, stored.weights)
                ::{{ db_function(type ~ '_block') }}
                order by stored.chunk, stored.number
            )
            from (
                {{ stored_blocks('the_table') | indent(16) }}
            ) as stored
            $select$,
            'the_table',
            stored::text
        ) into blocks;
        return blocks;
    end
    $body$;
    {%- endfor %}
{%- endmacro %}
