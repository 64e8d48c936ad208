{#-
    What the network would say if it ended at each point of the residual stream: the
    stream through the last layer norm and the vocabulary's projection.

    tokens       relation made by text_insight_tokens()
    stream       [places, n] each: relations of layers, the residual stream before the
                 first block, and in each block after attention and after the MLP
    norm         the last layer norm's weights, as in layer_norm()
    epsilon      of that norm, a scalar SQL expression
    head         [vocabulary, n]   the lm_head's weights
    vocabulary   of the checkpoint
    options      see insight_options()
    -> one row a point and a place: (sequence_id, prompt_id, position, layer, label,
       next_token_rank, next_token_logprob, kl_divergence, entropy, alternatives)

    kl_divergence is that of the network's own distribution p from this one, q: the sum
    of p (ln p - ln q); entropy is the sum of -q ln q. Both are in nats.

    nostalgebraist 2020, "interpreting GPT: the logit lens". Labels and stream are those
    of TransformerLens's ActivationCache.accumulated_resid(incl_mid=True,
    apply_ln=True): 0_pre, 0_mid, 1_pre, …, final_post. The chosen layers' are there,
    and final_post.
-#}
{% macro logit_lens(tokens, stream, norm, epsilon, head, vocabulary, options) -%}
    {%- set options = dbt_nn.insight_options(options) -%}
    {%- set last = stream | length - 1 -%}
    {%- set points = [] -%}
    {%- for layer in dbt_nn.looked_at_layers(last // 2, options) -%}
        {%- do points.extend([2 * layer, 2 * layer + 1]) -%}
    {%- endfor -%}
with stream as (
    {%- for point in points + [last] %}
    {{ 'union all' if not loop.first }}
    select
        {{ point }} as point,
        x.sequence_id,
        x.position,
        x.activation
    from {{ tokens }} as tokens
    inner join {{ stream[point] }} as x
        on tokens.sequence_id = x.sequence_id
        and tokens.position = x.position
    {%- endfor %}
),

normalized as (
    {{ dbt_nn.layer_norm('stream', norm, epsilon) | indent(4) }}
),

head as materialized (
    {{ dbt_nn.lm_head('normalized', head, all_positions=true) | indent(4) }}
),

likeliest as materialized (
    select
        {{ dbt_nn.place('head') }},
        max(best.x) as maximum,
        array_agg(best.token_id order by best.x desc, best.token_id) as token_ids,
        array_agg(best.x order by best.x desc, best.token_id) as logits
    from head
    cross join lateral (
        {{ dbt_nn.likeliest_tokens('head.logits', options.top_k) | indent(8) }}
    ) as best
    group by {{ dbt_nn.place('head') }}
),

{# the network's own distribution, float8[vocabulary] #}
final as materialized (
    select
        head.sequence_id,
        head.position,
        array(
            select e / sum(e) over ()
            from (
                select {{ dbt_nn.bounded_exp('score.x - likeliest.maximum') }} as e
                from (select unnest(head.logits) as x) as score
            ) as exponential
        ) as probabilities
    from head
    inner join likeliest using (point, sequence_id, position)
    where head.point = {{ last }}
),

{# log p = logit - normalizer #}
distributions as materialized (
    select
        {{ dbt_nn.place('head') }},
        tokens.prompt_id,
        likeliest.maximum + ln(total.exponentials) as normalizer,
        total.mean_logit / total.exponentials as mean_logit,
        total.final_mean_logit,
        head.logits[tokens.next_token_id + 1]::float8 as next_logit,
        case when tokens.next_token_id is not null then total.likelier + 1 end
        as next_token_rank,
        likeliest.token_ids,
        likeliest.logits
    from head
    inner join likeliest using (point, sequence_id, position)
    inner join final using (sequence_id, position)
    inner join {{ tokens }} as tokens using (sequence_id, position)
    cross join lateral (
        select
            sum(score.e) as exponentials,
            sum(score.e * score.x) as mean_logit,
            sum(score.p * score.x) as final_mean_logit,
            count(*) filter (
                where score.x > head.logits[tokens.next_token_id + 1]
            ) as likelier
        from (
            select
                element.x,
                element.p,
                {{ dbt_nn.bounded_exp('element.x - likeliest.maximum') }} as e
            from (
                select unnest(head.logits) as x, unnest(final.probabilities) as p
            ) as element
        ) as score
    ) as total
)

select
    q.sequence_id,
    q.prompt_id,
    q.position,
    q.point / 2 as layer,
    case
        when q.point = {{ last }} then 'final_post'
        else q.point / 2 || case q.point % 2 when 0 then '_pre' else '_mid' end
    end as label,
    q.next_token_rank,
    q.next_logit - q.normalizer as next_token_logprob,
    {# ln p and ln q have the mean under p: a mean logit less a normalizer #}
    greatest(
        0,
        p.final_mean_logit - p.normalizer - (q.final_mean_logit - q.normalizer)
    ) as kl_divergence,
    q.normalizer - q.mean_logit as entropy,
    (
        select jsonb_agg(
            jsonb_build_object(
                'token_id', best.token_id,
                'token', {{ dbt_nn.db_function('decode_utf8') }}(vocabulary.token),
                'logprob', best.logit - q.normalizer
            )
            order by best.i
        )
        from unnest(q.token_ids, q.logits)
            with ordinality as best (token_id, logit, i)
        left join {{ vocabulary }} as vocabulary using (token_id)
    ) as alternatives
from distributions as q
inner join distributions as p
    on q.sequence_id = p.sequence_id
    and q.position = p.position
    and p.point = {{ last }}
order by q.sequence_id, q.position, q.point
{%- endmacro %}
