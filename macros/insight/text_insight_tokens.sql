{#-
    The places that are looked at: the tokens that the layers hold, each with the one
    that came after it.

    tokens              relation made by text_tokens(): the last batch's
    hidden              relation of a layer, [places, n]
    prompts             relation made by text_prompts()
    completion_tokens   relation made by text_sample()
    vocabulary          of the checkpoint
    hyperparameters     its config
    options             see insight_options()
    -> one row a place: (sequence_id, prompt_id, position, token_id, piece,
       is_generated, next_token_id, next_piece)

    The network has not read the last token that was generated, so that it has no place:
    it is the last place's next token. There is none where nothing was generated.
-#}
{% macro text_insight_tokens(
    tokens, hidden, prompts, completion_tokens, vocabulary, hyperparameters, options
) -%}
    {%- set options = dbt_nn.insight_options(options) -%}
with held as materialized (
    select
        tokens.sequence_id,
        prompts.prompt_id,
        prompts.completion_id,
        tokens.position,
        tokens.token_id,
        tokens.position >= cardinality(prompts.prompt_token_ids) as is_generated
    from {{ tokens }} as tokens
    inner join {{ hidden }} as x
        on tokens.sequence_id = x.sequence_id
        and tokens.position = x.position
    inner join {{ prompts }} as prompts
        on tokens.sequence_id = prompts.sequence_id
),

sequences as materialized (
    select
        held.sequence_id,
        held.prompt_id,
        held.completion_id,
        count(*) as n,
        sum(count(*)) over (order by held.sequence_id) as total
    from held
    {%- if options.prompt_ids is not none %}
    where held.prompt_id::text in ({{ dbt_nn.literals(options.prompt_ids) }})
    {%- endif %}
    group by held.sequence_id, held.prompt_id, held.completion_id
),

checked as materialized (
    select sequences.*
    from (select true) as once
    left join sequences on sequences.total <= {{ options.places }}
    where {{ dbt_nn.db_function('check_input') }}(
        {{ dbt_nn.insight_problem('held', 'sequences', hyperparameters, options) | indent(8) }}
    )
),

{# the token that was not read, too #}
chosen as (
    select
        checked.sequence_id,
        checked.prompt_id,
        held.position,
        held.token_id,
        held.is_generated,
        true as is_read
    from checked
    inner join held on checked.sequence_id = held.sequence_id
    union all
    select
        checked.sequence_id,
        checked.prompt_id,
        samples.position,
        samples.token_id,
        true,
        false
    from checked
    inner join {{ completion_tokens }} as samples
        on checked.sequence_id = samples.sequence_id
        and checked.completion_id = samples.completion_id
        and checked.n = samples.position
),

{# a character that is split over tokens comes with the last of them #}
pieces as (
    select
        chosen.*,
        {{ dbt_nn.db_function('next_piece') }}(
            coalesce(string_agg(vocabulary.token, ''::bytea) over (
                partition by chosen.sequence_id order by chosen.position
                rows between unbounded preceding and 1 preceding
            ), ''),
            vocabulary.token,
            lead(chosen.position) over one_text is null
        ) as piece
    from chosen
    left join {{ vocabulary }} as vocabulary
        on chosen.token_id = vocabulary.token_id
    window one_text as (partition by chosen.sequence_id order by chosen.position)
),

followed as (
    select
        pieces.*,
        lead(pieces.token_id) over one_text as next_token_id,
        lead(pieces.piece) over one_text as next_piece
    from pieces
    window one_text as (partition by pieces.sequence_id order by pieces.position)
)

select
    followed.sequence_id,
    followed.prompt_id,
    followed.position,
    followed.token_id,
    followed.piece,
    followed.is_generated,
    followed.next_token_id,
    followed.next_piece
from followed
where followed.is_read
order by followed.sequence_id, followed.position
{%- endmacro %}


{#-
    What is wrong with the options, or with what the layers hold: an expression, a text
    or NULL.

    held              name of a relation: (prompt_id) of the places that the layers hold
    sequences         name of a relation: (n, total) of the sequences to look at
    hyperparameters   the checkpoint's config
    options           made by insight_options()
-#}
{% macro insight_problem(held, sequences, hyperparameters, options) -%}
{%- set network = config.meta_get('network') -%}
{%- set name = 'the var ' ~ network ~ '_insight: ' -%}
case
    when not exists (select from {{ held }})
        then 'the layers of {{ network }} hold nothing to look into: complete a prompt '
            || 'with `dbt run --select {{ network }} --threads 1`: the first of several '
            || 'sessions may have had no batch'
    {%- for key, count in (
        ('layers', 'num_hidden_layers'), ('heads', 'num_attention_heads')
    ) if options[key] is not none %}
    when {{ options[key] | max }} >= {{ dbt_nn.hyperparameter(hyperparameters, count) }}
        then format(
            '{{ name }}{{ key }} has {{ options[key] | max }}, and the network has %s {{ key }}, from 0 to %s',
            {{ dbt_nn.hyperparameter(hyperparameters, count) }},
            {{ dbt_nn.hyperparameter(hyperparameters, count) }} - 1
        )
    {%- endfor %}
    {%- if options.prompt_ids is not none %}
    when exists (
        select from unnest(array[{{ dbt_nn.literals(options.prompt_ids) }}]) as wanted (prompt_id)
        where wanted.prompt_id not in (select prompt_id::text from {{ held }})
    )
        then format(
            '{{ name }}prompt_ids has %s, and the layers hold the last batch, the '
            'prompts %s',
            (
                select min(wanted.prompt_id)
                from unnest(array[{{ dbt_nn.literals(options.prompt_ids) }}]) as wanted (prompt_id)
                where wanted.prompt_id not in (select prompt_id::text from {{ held }})
            ),
            (select string_agg(distinct prompt_id::text, ', ') from {{ held }})
        )
    {%- endif %}
    when not exists (select from {{ sequences }} where total <= {{ options.places }})
        then format(
            '{{ name }}places is {{ options.places }}, and the first sequence has %s '
            'tokens: give as many at least',
            (select n from {{ sequences }} order by total limit 1)
        )
end
{%- endmacro %}


{#-
    Says which prompts the option `places` left out. For on-run-end.

    results   of dbt's context
-#}
{% macro print_left_out(results) -%}
    {%- for result in results
        if execute and result.status == 'success'
        and 'insight' in result.node.tags
        and result.node.name == (result.node.config.meta.network or '') ~ '_insight_tokens' -%}
        {%- set network = result.node.config.meta.network -%}
        {%- set ours = 'model.' ~ result.node.package_name ~ '.' ~ network -%}
        {%- set wanted = var(network ~ '_insight', {}).get('prompt_ids') -%}
        {%- set left_out = run_query(dbt_nn._left_out_prompts(
            result.node.relation_name,
            graph.nodes[ours ~ '_tokens'].relation_name,
            graph.nodes[ours ~ '_prompts'].relation_name,
            wanted,
        )).rows[0] -%}
        {%- if left_out[0] -%}
            {%- do print(
                network ~ '_insight: the option places leaves out the prompts '
                ~ left_out[0]
            ) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro %}


{% macro _left_out_prompts(insight_tokens, tokens, prompts, wanted) -%}
select string_agg(prompts.prompt_id::text, ', ' order by prompts.sequence_id)
from {{ prompts }} as prompts
where prompts.sequence_id in (select sequence_id from {{ tokens }})
    and prompts.sequence_id not in (select sequence_id from {{ insight_tokens }})
    {%- if wanted %}
    and prompts.prompt_id::text in ({{ dbt_nn.literals(wanted) }})
    {%- endif %}
{%- endmacro %}
