{#-
    Weights in the memory of the session, for all steps after a text's prompt.

    To find a row of weights on its page takes longer than its inner product. What
    a session of PostgreSQL keeps for itself are plans, and a plan has constants: a
    function that is declared immutable and has constant arguments is called once,
    when its statement is planned. resident_blocks(), which reads a table, is declared
    so. A layer with a matrix of weights (stored_matrix()) has two functions whose
    plans have the matrix's blocks as a constant, and its SELECT is rendered for them
    as well: for the way `several` it calls the first, for `one` the second, which goes
    through the blocks row by row, and gives W x + b of one place in one call. The steps of a session that may (resident_sessions()) take
    those ways. The numbers are the same to the bit.

    The plan ends with the session, and when its table is loaded anew. A row that is
    updated by hand is seen by the next session, so by every run of dbt.
-#}


{#- Says, in a kernel, which relation of weights (as in linear()) it multiplies by, and as
    what matmul() gives the result. -#}
{% macro stored_matrix(weights, as='vector') -%}
    {%- if dbt_nn.way() and model.dbt_nn_said.get('weights', weights) != weights -%}
        {{ exceptions.raise_compiler_error(
            'a layer has one matrix of weights, and this one has ' ~ weights ~ ' and '
            ~ model.dbt_nn_said.weights ~ ': make it two layers'
        ) }}
    {%- endif -%}
    {%- do dbt_nn.say('weights', weights) -%}
    {%- do dbt_nn.say('as', as) -%}
{%- endmacro %}


{#- A kernel's products of every row of x with weights in memory: a SELECT of (place,
    block, chunk, outputs). The places are arrays as the activations are: a join by the
    row's number would compare each product with every row of x. -#}
{% macro resident_products(x) -%}
select
    {%- for column in dbt_nn.place_columns() %}
    inputs.{{ column }}s[product.number] as {{ column }},
    {%- endfor %}
    product.block,
    product.chunk,
    product.outputs
from (
    select
        {%- for column in dbt_nn.place_columns() + ['activation'] %}
        array_agg({{ x }}.{{ column }} order by {{ dbt_nn.place(x) }}) as {{ column }}s
        {{- ',' if not loop.last }}
        {%- endfor %}
    from {{ x }}
) as inputs
cross join lateral {{ dbt_nn.resident_function(this) }}(inputs.activations) as product
{%- endmacro %}


{% macro resident_function(relation, one=false) -%}
    {{ adapter.quote(relation.schema) }}.
    {{- adapter.quote(relation.identifier ~ '_resident' ~ ('_one' if one else '')) }}
{%- endmacro %}


{#-
    The functions `<layer>_resident(inputs)`, each block's products with every input,
    and `<layer>_resident_one(input)`, W x + b as matmul() gives it, `as` a vector or an
    array. They name the table, so that their plans end with it.
-#}
{% macro create_resident_functions(relation, weights, as) -%}
    create or replace function {{ dbt_nn.resident_function(relation) }}(inputs vector[])
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
            input.number,
            blocks.number,
            columns.chunk,
            {{ dbt_nn.db_function('products') }}(columns, input.activation) + blocks.biases
        from (
            select (held.block).*
            from (
                {{ dbt_nn.held_blocks(weights, as) | indent(16) }}
            ) as held
            offset 0
        ) as blocks
        cross join lateral {{ dbt_nn.db_function('columns_of') }}(
            blocks.chunk, blocks.weights
        ) as columns
        cross join lateral (
            select
                x.number,
                {{ dbt_nn.input_chunk('x.activation', 'columns.chunk', weights) }} as activation
            from x
            offset 0
        ) as input;
    end
    $resident$;

    {%- set sum = dbt_nn.db_function('vector_sum' if as == 'vector' else 'array_sum') %}
    drop function if exists {{ dbt_nn.resident_function(relation, true) }}(integer, anyelement);
    create or replace function {{ dbt_nn.resident_function(relation, true) }}(input vector)
    returns {{ 'vector' if as == 'vector' else 'real[]' }} language plpgsql stable
    set plan_cache_mode = force_generic_plan
    as $resident$
    begin
        if vector_dims(input) <= {{ dbt_nn.longest_chunk() }} then
            return (
                {{ dbt_nn.held_products('0', weights, as) | indent(16) }}
            );
        end if;
        return (
            select {{ sum }}((
                {{ dbt_nn.held_products('chunk', weights, as) | indent(16) }}
            ) order by chunk)
            from generate_series(0, {{ dbt_nn.chunk_count('input') }} - 1) as chunk
        );
    end
    $resident$;
{%- endmacro %}


{#- A table's blocks as constants of a plan: a SELECT of (block). An array has 1 GB at
    most, which the vocabulary's weights may exceed. -#}
{% macro held_blocks(weights, as) -%}
{%- set parts = 8 if as == 'array' else 1 -%}
{%- for part in range(parts) -%}
{{ 'union all ' if part }}select unnest({{ dbt_nn.db_function('resident_blocks') }}(
    {{ dbt_nn.literal(weights) }}::regclass, (null::{{ weights }}).weight, {{ part }}, {{ parts }}
)) as block
{{ 'where not exists (select from %s where false)' | format(weights) if not part }}
{% endfor -%}
offset 0
{%- endmacro %}


{#-
    The products of a chunk of `input` with all rows of that chunk, and the biases in
    chunk 0: a SELECT of one value. Biases of 0 take no time: a vector of them is NULL,
    and so is an array's.
-#}
{% macro held_products(chunk, weights, as) -%}
{%- set biases -%}
{{ dbt_nn.db_function('resident_biases') }}({{ dbt_nn.literal(weights) }}::regclass)
{%- endset -%}
select
    {% if as == 'array' -%}
    product.y
    {%- else -%}
    case
        when {{ chunk }} > 0 or {{ biases }} is null then product.y
        else product.y + {{ biases }}
    end
    {%- endif %}
from (
    select array(
        {%- if as == 'array' %}
        select (inner_product(w.weight, part.x) + coalesce(w.bias, 0))::real
        {%- else %}
        select inner_product(w.weight, part.x)::real
        {%- endif %}
        from (
            select
                unnest((held.block).weights) as weight
                {%- if as == 'array' %},
                unnest(case
                    when vector_norm((held.block).biases) > 0
                        then (held.block).biases::real[]
                end) as bias
                {%- endif %}
            from (
                {{ dbt_nn.held_blocks(weights, as) | indent(16) }}
            ) as held
            where (held.block).chunk = {{ chunk }}
        ) as w
    ){{ '::vector' if as == 'vector' }} as y
    from (
        select {{ dbt_nn.db_function('chunk_of') }}(
            input, {{ chunk }}, (null::{{ weights }}).weight
        ) as x
        offset 0
    ) as part
    offset 0
) as product
{%- endmacro %}


{#-
    How many sessions may take those SELECTs for a network's steps: as many copies of its
    checkpoint's tables as fit the var resident_memory, like '2GB'; null: none.
-#}
{% macro resident_sessions(network) -%}
    {%- set config = graph.sources[
        ['source', model.package_name, network, 'config'] | join('.')
    ] -%}
    {%- set memory = dbt_nn.memory_setting('resident_memory') -%}
    {%- if memory is none -%}
        {{ return(0) }}
    {%- endif -%}
    {{ return(run_query(
        'select least(1000, ' ~ memory ~ ' / ' ~ dbt_nn.checkpoint_bytes(config.schema)
        ~ ')::integer'
    ).rows[0][0]) }}
{%- endmacro %}


{#-
    DDL of what the plans' constants are:

        resident_blocks(stored, type, part, parts)   an array of a table's blocks, see
            stored_blocks(): a part of so many parts of them. `type` is a NULL of the
            weights' type, vector or halfvec.
        resident_biases(stored)                      a vector of all biases; NULL where
            they are 0
-#}
{% macro create_resident_blocks() -%}
    {%- for type in ('vector', 'halfvec') %}
    do $body$
    begin
        if to_regtype({{ dbt_nn.literal(dbt_nn.db_function(type ~ '_block')) }}) is null then
            create type {{ dbt_nn.db_function(type ~ '_block') }} as (
                chunk integer, number integer, biases vector, weights {{ type }}[]
            );
        end if;
    end
    $body$;

    create or replace function {{ dbt_nn.db_function('resident_blocks') }} (
        stored regclass, type {{ type }}, part integer, parts integer
    ) returns {{ dbt_nn.db_function(type ~ '_block') }}[] language plpgsql immutable as $body$
    declare
        blocks {{ dbt_nn.db_function(type ~ '_block') }}[];
    begin
        execute replace(
            $select$
            select array_agg(
                (stored.chunk, stored.number, stored.biases, stored.weights)
                ::{{ dbt_nn.db_function(type ~ '_block') }}
                order by stored.chunk, stored.number
            )
            from (
                {{ dbt_nn.stored_blocks('the_table') | indent(16) }}
            ) as stored
            where stored.number * $2 / {{ dbt_nn.block_count('the_table') }} = $1
            $select$,
            'the_table',
            stored::text
        ) into blocks using part, parts;
        return blocks;
    end
    $body$;
    {%- endfor %}

    create or replace function {{ dbt_nn.db_function('resident_biases') }} (stored regclass)
    returns vector language plpgsql immutable as $body$
    declare
        biases vector;
    begin
        execute format(
            'select array_agg(bias order by feature)::vector from %s where chunk = 0 '
            'having bool_or(bias <> 0)',
            stored
        ) into biases;
        return biases;
    end
    $body$;
{%- endmacro %}
