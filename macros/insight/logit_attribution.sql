{#-
    Direct logit attribution: what each part of the network adds to the logit of the
    token that came, and to that of the likeliest other one.

    tokens        relation made by text_insight_tokens()
    directions    relation made by logit_directions()
    stream        [places, n] each: the residual stream, as in logit_lens()
    outputs       [places, n] each: relations of layers, what the heads of each block
                  give, side by side
    projections   [n, n], [n] each: attention's output weights of each block
    words, positions   the embeddings of tokens and positions, as in embedding()
    norm          the last layer norm's weights
    head          [vocabulary, n]   the lm_head's weights
    heads         scalar SQL expression, how many heads a block has
    -> one row a place with a next token and a part: (sequence_id, prompt_id, position,
       label, layer, head, logit, runner_up_logit, logit_difference)

    The parts add up to the logit: the embeddings, each head without the bias of its
    projection, the biases of all projections (attn_bias), each MLP with its bias, and
    the bias of the last layer norm. Labels and parts are those of TransformerLens's
    ActivationCache.get_full_resid_decomposition(expand_neurons=False), where attn_bias
    is `bias` and the last norm's is left out; numbers are those of logit_attrs.
-#}
{% macro logit_attribution(
    tokens, directions, stream, outputs, projections, words, positions, norm, head, heads
) -%}
with directions as materialized (
    select
        directions.*,
        tokens.token_id as input_id
    from {{ directions }} as directions
    inner join {{ tokens }} as tokens using (sequence_id, position)
),

of_stream as (
    select * from directions where layer is null
),

attention_bias as (
    select {{ dbt_nn.vector_of('biases.bias', by='biases.feature') }} as bias
    from (
        select
            w.feature,
            sum(w.bias) as bias
        from (
            {%- for projection in projections %}
            {{ 'union all' if not loop.first }}
            select feature, bias from {{ projection }} where chunk = 0
            {%- endfor %}
        ) as w
        group by w.feature
    ) as biases
),

parts as (
    select
        'embed' as label,
        0 as place,
        null::integer as layer,
        null::integer as head,
        d.sequence_id,
        d.position,
        d.is_runner_up,
        {{ dbt_nn.dot(dbt_nn.embedding_row(words, 'd.input_id'), 'd.direction') }} as logit
    from of_stream as d
    union all
    select
        'pos_embed',
        1,
        null,
        null,
        d.sequence_id,
        d.position,
        d.is_runner_up,
        {{ dbt_nn.dot(dbt_nn.embedding_row(positions, 'd.position'), 'd.direction') }}
    from of_stream as d
    {%- for layer in range(outputs | length) %}
    union all
    select
        'L{{ layer }}H' || head.number,
        {{ 2 * layer + 2 }},
        {{ layer }},
        head.number,
        d.sequence_id,
        d.position,
        d.is_runner_up,
        {{ dbt_nn.dot(
            dbt_nn.slice('x.activation', 'head.size * head.number', 'head.size'),
            dbt_nn.slice('d.direction', 'head.size * head.number', 'head.size'),
        ) }}
    from directions as d
    inner join {{ outputs[layer] }} as x using (sequence_id, position)
    cross join lateral (
        select
            number,
            vector_dims(x.activation) / {{ heads }} as size
        from generate_series(0, {{ heads }} - 1) as number
    ) as head
    where d.layer = {{ layer }}
    union all
    select
        '{{ layer }}_mlp_out',
        {{ 2 * layer + 3 }},
        {{ layer }},
        null,
        d.sequence_id,
        d.position,
        d.is_runner_up,
        {{ dbt_nn.dot('after.activation - middle.activation', 'd.direction') }}
    from of_stream as d
    inner join {{ stream[2 * layer + 1] }} as middle using (sequence_id, position)
    inner join {{ stream[2 * layer + 2] }} as after using (sequence_id, position)
    {%- endfor %}
    union all
    select
        'attn_bias',
        {{ 2 * outputs | length + 2 }},
        null,
        null,
        d.sequence_id,
        d.position,
        d.is_runner_up,
        {{ dbt_nn.dot('attention_bias.bias', 'd.direction') }}
    from of_stream as d
    cross join attention_bias
    union all
    select
        'ln_final_bias',
        {{ 2 * outputs | length + 3 }},
        null,
        null,
        d.sequence_id,
        d.position,
        d.is_runner_up,
        {{ dbt_nn.dot('norm.bias', dbt_nn.embedding_row(head, 'd.token_id')) }}
    from of_stream as d
    cross join {{ norm }} as norm
)

select
    parts.sequence_id,
    tokens.prompt_id,
    parts.position,
    parts.label,
    parts.layer,
    parts.head,
    sum(parts.logit) filter (where not parts.is_runner_up) as logit,
    sum(parts.logit) filter (where parts.is_runner_up) as runner_up_logit,
    sum(case when parts.is_runner_up then -parts.logit else parts.logit end)
    as logit_difference
from parts
inner join {{ tokens }} as tokens using (sequence_id, position)
group by
    parts.sequence_id,
    tokens.prompt_id,
    parts.position,
    parts.place,
    parts.label,
    parts.layer,
    parts.head
order by parts.sequence_id, parts.position, parts.place, parts.head
{%- endmacro %}
