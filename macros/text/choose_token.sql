{#-
    A token drawn from logits under a row's options: a SELECT of token_id.

    logits    real[vocabulary], an expression of the enclosing row
    options   alias of the enclosing row: do_sample, temperature, top_k, top_p,
              min_p, seed, prompt_id, position
    allowed   the tokens that may be drawn, an integer[]; all by default
    -> one row (token_id); the smaller id first among equal logits

    Behaves as transformers' TemperatureLogitsWarper, TopKLogitsWarper,
    TopPLogitsWarper and MinPLogitsWarper in that order, then an inverse CDF
    over the tokens by falling probability. Greedy decoding is top-k with k = 1.
    Among logits equal to the k-th, top-k keeps the smaller ids and exactly k
    tokens, where transformers keeps all of them.
-#}
{% macro choose_token(logits, options, allowed=none) -%}
{%- set k = (
    'case when ' ~ options ~ '.do_sample then nullif(' ~ options ~ '.top_k, 0) else 1 end'
) -%}
{#- What is beyond these draws the same, and its products are beyond float8, which
    PostgreSQL takes for an error. Scalar sub-selects, made once and not a token. -#}
{%- set temperature = '(select least(' ~ options ~ '.temperature, 1e200))' -%}
{%- set min_p = '(select case when ' ~ options ~ '.min_p > 1e-300 then '
    ~ options ~ '.min_p else 0 end)' -%}
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
                            -700 * {{ temperature }}
                        ) / {{ temperature }}
                    ) as weight
                from (
                    {{ dbt_nn.likeliest_tokens(logits, k, allowed) | indent(20) }}
                ) as top
            ) as best
        ) as likely
    ) as kept
    where kept.n = 1
        or kept.above < {{ options }}.top_p
        and kept.p >= {{ min_p }} * kept.highest
) as drawn
where drawn.cumulative > drawn.total * {{ dbt_nn.uniform(
    options ~ '.seed', options ~ '.prompt_id', options ~ '.position'
) }}
order by drawn.n
limit 1
{%- endmacro %}


{#-
    The k likeliest tokens, from the likeliest down: a SELECT.

    logits    real[vocabulary], an expression of the enclosing row
    k         scalar expression; all tokens where it is NULL
    allowed   the tokens among which they are, an integer[]; all by default
    -> k rows (token_id, x), x the logit as float8; the smaller id first among
       equals

    They are in the k slices whose maxima are highest, so that only those are
    sorted.
-#}
{% macro likeliest_tokens(logits, k, allowed=none) -%}
{%- if allowed %}
select token_id, whole.logits[token_id + 1]::float8 as x
from (
    select given.logits
    from (select {{ logits }} as logits) as given
    offset 0
) as whole
cross join unnest({{ allowed }}) as token_id
order by x desc, token_id
limit {{ k }}
{%- else %}
select slice.start + score.i - 2 as token_id, score.x::float8 as x
from (
    select slice.start, slice.logits
    from (
        select start, whole.logits[start:start + {{ dbt_nn.slice_size() }} - 1] as logits
        from (
            select given.logits
            from (select {{ logits }} as logits) as given
            offset 0
        ) as whole
        cross join lateral
            generate_series(1, cardinality(whole.logits), {{ dbt_nn.slice_size() }}) as start
        offset 0
    ) as slice
    order by
        (select max(score.x) from (select unnest(slice.logits) as x) as score) desc,
        slice.start
    limit {{ k }}
) as slice
cross join lateral (
    select unnest(slice.logits) as x, generate_subscripts(slice.logits, 1) as i
) as score
order by score.x desc, token_id
limit {{ k }}
{%- endif %}
{%- endmacro %}


{% macro slice_size() -%}
    128
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
{#- What is beyond makes 0 or the largest number of any logit; see saturated(). -#}
{%- set penalty = 'greatest(least(' ~ row ~ '.repetition_penalty, 1e260), 1e-260)' -%}
case
    when {{ row }}.repetition_penalty = 1 then {{ row }}.logits
    else (
        select array_agg(
            case
                when seen.token_id is null then score.x
                when score.x < 0
                    then {{ dbt_nn.saturated('score.x * ' ~ penalty) }}
                else {{ dbt_nn.saturated('score.x / ' ~ penalty) }}
            end
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


{#- A float8 as a real: the largest one, or 0, where PostgreSQL would raise an error.
    The largest logit is as good as transformers' infinity, and has a softmax. -#}
{% macro saturated(x) -%}
    (
        select case
            when abs(number.x) < 1e-44 then 0
            else greatest(least(number.x, 3.4028234e38), -3.4028234e38)
        end::real
        from (select {{ x }} as x) as number
    )
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
