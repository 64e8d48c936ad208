{#-
    A layer's rows, shared over the server's parallel workers.

    PostgreSQL computes a correlated sub-select, which every matrix product here
    is, in the leader of a query only, but it runs a function wherever it is
    called. So a kernel says which rows belong to a band (in_band()), or which
    part of every row, and how much work the layer is (parallel_work()). Rendered for
    the way `band`, its SELECT is the body of a function of the band, which a Parallel
    Append calls once for each. For other ways the conditions are true.

    A worker takes a while to start. So its share of the work, 1 in all, is smaller
    than the leader's, which has the last band: Parallel Append gives the leader the
    last call, and workers the first.

    No number depends on its band: the layer is the same to the bit whatever the
    number of workers, which may be none.
-#}


{#- Whether the SELECT is that of a band: then $1 is its number, from 0, $2 how many
    there are, and $3 the share of each but the last one. -#}
{% macro is_banded() -%}
    {{ return(dbt_nn.way() == 'band') }}
{%- endmacro %}


{#- Expressions: the band has the part of the work, from 0 to 1, between these. The
    end of a band is the start of the next one to the bit. -#}
{% macro band_start() -%}
    {{ '($1 * $3)' if dbt_nn.is_banded() else '0' }}
{%- endmacro %}


{% macro band_end() -%}
    {{ '(case when $1 = $2 - 1 then 1 else ($1 + 1) * $3 end)' if dbt_nn.is_banded() else '1' }}
{%- endmacro %}


{#- A condition: the row's place belongs to the band, or what some of its columns name.
    A band has its share of any few places that are side by side, since later positions
    of a text have more to attend to: multiples of the golden ratio, without their whole
    part, are spread evenly. -#}
{% macro in_band(alias, columns=none) -%}
    {%- if not dbt_nn.is_banded() -%}
        {{ return('true') }}
    {%- endif -%}
    {%- set number -%}
        ({% for column in columns or dbt_nn.place_columns() -%}
            {{ alias }}.{{ column }}::float8{{ ' + ' if not loop.last }}
        {%- endfor %}) * 0.6180339887498949::float8
    {%- endset -%}
    {{ number }} - floor({{ number }}) >= {{ dbt_nn.band_start() }}
    and {{ number }} - floor({{ number }}) < {{ dbt_nn.band_end() }}
{%- endmacro %}


{#-
    For kernels that look at a whole image before they write any place of it: the
    band's images where all bands have as many, so that no band repeats another's
    work. Else NULL, and every band has some places of each image. A scalar
    subquery; `input` is a layer.
-#}
{% macro images_of_band(input) -%}
    (
        select array_agg(image.image_id)
        from (
            select
                x.image_id,
                row_number() over (order by x.image_id) - 1 as number,
                count(*) over () as images
            from {{ dbt_nn.at_frontier(input, 'x') }}
            where x.y = 0 and x.x = 0
        ) as image
        where image.images % $2 = 0 and image.number % $2 = $1
    )
{%- endmacro %}


{#- Conditions under which a row of its input matters to the band, and under which
    it is one that the band writes; `images` is an expression, images_of_band(). -#}
{% macro matters_to_band(alias, images) -%}
    {%- if not dbt_nn.is_banded() -%}
        {{ return('true') }}
    {%- endif -%}
    ({{ images }} is null or {{ alias }}.image_id = any(coalesce({{ images }})))
{%- endmacro %}


{% macro in_image_band(alias, images) -%}
    {%- if not dbt_nn.is_banded() -%}
        {{ return('true') }}
    {%- endif -%}
    case
        when {{ images }} is null then {{ dbt_nn.in_band(alias) }}
        else {{ alias }}.image_id = any(coalesce({{ images }}))
    end
{%- endmacro %}


{#-
    Says, in a kernel that has bands, how much work the layer is.

    work        scalar SQL expression: about how many multiply-adds
    each_step   whether a step of a text, which has few places, is to be shared
                as well as the prompts are. To look at the work of every layer
                at every token would take longer than it gained.
    joined      a column of type real[], if a band has a part of every place's
                elements and not all elements of some places
-#}
{% macro parallel_work(work, each_step=false, joined=none) -%}
    {%- do dbt_nn.say('work', {
        'amount': work, 'each_step': each_step, 'joined': joined,
    }) -%}
{%- endmacro %}


{#- The same, of weights (as in linear()) that meet the places of `input`, or each
    `stride`-th of them in both directions, and of what a place costs besides. -#}
{% macro parallel_matmul(input, weights, place_work=15000, stride=1) -%}
    {{ dbt_nn.parallel_work(
        '(select count(*) from ' ~ dbt_nn.at_frontier(input, 'x') ~ ')'
        ~ ' * (pg_relation_size(' ~ dbt_nn.literal(weights) ~ ') / 5 + ' ~ place_work ~ ') / '
        ~ stride * stride
    ) }}
{%- endmacro %}


{#- An expression: how many processes are to share some work, which is above 0 if
    they are several. The leader is one beside the workers. -#}
{% macro band_count(work) -%}
    least(
        current_setting('max_parallel_workers_per_gather')::integer + 1,
        {{ work }} / {{ dbt_nn.work_per_process() }}
    )
{%- endmacro %}


{#- An expression: the share of a worker, so that all end together if the leader has
    done the work of `work_per_process` before they begin. -#}
{% macro worker_share(work, bands) -%}
    (1 - {{ dbt_nn.work_per_process() }}::float8 / {{ work }}) / {{ bands }}
{%- endmacro %}


{#-
    The functions `<layer>_band(band, bands, share)`, a band's rows, and
    `<layer>_bands(bands, share)`, those of all bands, joined where they are parts. The
    settings make the calls parallel, and nothing within them: sums keep their
    order. A worker has them and those of the layer's forward function.
-#}
{% macro create_band_functions(relation, program) -%}
    {%- set joined = program.work.joined -%}
    create or replace function {{ dbt_nn.band_function(relation) }}(
        band integer, bands integer, share float8
    ) returns setof {{ relation }} language plpgsql
    stable parallel safe
    as $band$
    #variable_conflict use_column
    begin
        return query
        {{ program.band }};
    end
    $band$;

    create or replace function {{ dbt_nn.bands_function(relation) }}(
        bands integer, share float8
    ) returns setof {{ relation }} language plpgsql stable
    set parallel_setup_cost = 0
    set parallel_tuple_cost = 0
    set min_parallel_table_scan_size = 715827882
    set min_parallel_index_scan_size = 715827882
    as $bands$
    declare
        parts constant text := (
            select string_agg(
                format(
                    'select {{ "%1$s as band, " if joined }}* from %4$s(%1$s, %2$s, %3$s)',
                    i, bands, share, {{ dbt_nn.literal(dbt_nn.band_function(relation)) }}
                ),
                ' union all '
            )
            from generate_series(0, bands - 1) as i
        );
    begin
        {%- if joined %}
        return query execute format(
            'select {{ dbt_nn.place("part") }}, '
            '%s(part.{{ joined }} order by part.band) '
            'from (%s) as part group by {{ dbt_nn.place("part") }}',
            {{ dbt_nn.literal(dbt_nn.db_function('array_concat')) }}, parts
        );
        {%- else %}
        return query execute parts;
        {%- endif %}
    end
    $bands$;
{%- endmacro %}


{% macro band_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_band') }}
{%- endmacro %}


{% macro bands_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_bands') }}
{%- endmacro %}
