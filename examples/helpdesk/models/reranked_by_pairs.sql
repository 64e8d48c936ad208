-- The candidates of each question, ranked by a network that reads both texts at once.
{{ config(enabled=var('cross_encoder')) }}

select
    candidates.question_id,
    candidates.question,
    row_number() over (
        partition by candidates.question_id
        order by scores.score desc nulls last, candidates.rank_by_meaning
    ) as rank,
    candidates.ticket_id,
    tickets.subject,
    candidates.rank_by_meaning,
    scores.score
from {{ ref('candidates') }} as candidates
inner join {{ ref('reranker_classes') }} as scores
    on candidates.pair = scores.key
inner join {{ ref('tickets') }} as tickets
    on candidates.ticket_id = tickets.ticket_id
order by candidates.question_id, rank
