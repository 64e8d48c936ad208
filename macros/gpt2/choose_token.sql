{#-
    A token drawn from logits under a row's options: a SELECT of token_id.

    logits    real[vocabulary], an expression of the enclosing row
    options   alias of the enclosing row: do_sample, temperature, top_k, top_p,
              min_p, seed, prompt_id, position
    -> one row (token_id); the smaller id first among equal logits

    Behaves as transformers' TemperatureLogitsWarper, TopKLogitsWarper,
    TopPLogitsWarper and MinPLogitsWarper in that order, then an inverse CDF
    over the tokens by falling probability. Greedy decoding is top-k with k = 1.
    Among logits equal to the k-th, top-k keeps the smaller ids and exactly k
    tokens, where transformers keeps all of them.
-#}
{% macro choose_token(logits, options) -%}
select drawn.token_id
from (
    select
        kept.*,
        sum(kept.p) over (order by kept.n) as cumulative,
        sum(kept.p) over () as total
    from (
        select
            likely.*,
            max(likely.p) over () as highest,
            sum(likely.p) over (order by likely.n) - likely.p as above
        from (
            select
                best.token_id,
                best.n,
                best.weight / sum(best.weight) over () as p
            from (
                select
                    top.token_id,
                    row_number() over (order by top.x desc, top.token_id) as n,
                    {# exp() raises an error where it underflows: below -700 #}
                    exp(
                        greatest(
                            top.x - max(top.x) over (),
                            -700 * {{ options }}.temperature
                        ) / {{ options }}.temperature
                    ) as weight
                from (
                    select (score.i - 1)::integer as token_id, score.x::float8 as x
                    from unnest({{ logits }}) with ordinality as score (x, i)
                    order by score.x desc, score.i
                    limit case
                        when not {{ options }}.do_sample then 1
                        else nullif({{ options }}.top_k, 0)
                    end
                ) as top
            ) as best
        ) as likely
    ) as kept
    where kept.n = 1
        or kept.above < {{ options }}.top_p
        and kept.p >= {{ options }}.min_p * kept.highest
) as drawn
where drawn.cumulative > drawn.total * {{ uniform(
    options ~ '.seed', options ~ '.prompt_id', options ~ '.position'
) }}
order by drawn.n
limit 1
{%- endmacro %}


{#-
    transformers' RepetitionPenaltyLogitsProcessor: the logits of tokens that
    the sequence has already are divided by the penalty, or multiplied by it
    where they are negative.

    row      alias of the enclosing row: logits, repetition_penalty, sequence_id
    tokens   relation: (sequence_id, position, token_id)
    -> real[vocabulary]
-#}
{% macro penalized_logits(row, tokens) -%}
case
    when {{ row }}.repetition_penalty = 1 then {{ row }}.logits
    else (
        select array_agg(
            case
                when seen.token_id is null then score.x
                when score.x < 0 then score.x * {{ row }}.repetition_penalty
                else score.x / {{ row }}.repetition_penalty
            end::real
            order by score.i
        )
        from unnest({{ row }}.logits) with ordinality as score (x, i)
        left join (
            select distinct tokens.token_id
            from {{ tokens }} as tokens
            where tokens.sequence_id = {{ row }}.sequence_id
        ) as seen on seen.token_id = score.i - 1
    )
end
{%- endmacro %}


{#-
    A number in [0, 1) that is a function of its arguments alone: the first 52
    bits of their MD5. So a token does not depend on the order of execution.
-#}
{% macro uniform(seed, sequence, position) -%}
(
    ('x' || left(md5(format('%s/%s/%s', {{ seed }}, {{ sequence }}, {{ position }})), 13))::bit(52)::bigint
    / 4503599627370496.0::float8
)
{%- endmacro %}
