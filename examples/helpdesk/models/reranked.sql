-- The candidates of each question, ranked by meaning and by words in common: the
-- ranks are merged by reciprocal rank fusion (Cormack et al. 2009), with its 60.
with matched as (
    select
        candidates.*,
        ts_rank_cd(
            to_tsvector('english', candidates.text),
            -- any of the question's words will do
            replace(
                plainto_tsquery('english', candidates.question)::text, '&', '|'
            )::tsquery
        ) as words
    from {{ ref('candidates') }} as candidates
),

ranked as (
    select
        matched.*,
        rank() over (partition by question_id order by words desc) as rank_by_words
    from matched
),

scored as (
    select
        ranked.*,
        1.0 / (60 + rank_by_meaning)
        + case when words > 0 then 1.0 / (60 + rank_by_words) else 0 end as score
    from ranked
)

select
    scored.question_id,
    scored.question,
    row_number() over (
        partition by scored.question_id order by scored.score desc, scored.rank_by_meaning
    ) as rank,
    scored.ticket_id,
    tickets.subject,
    scored.rank_by_meaning,
    case when scored.words > 0 then scored.rank_by_words end as rank_by_words
from scored
inner join {{ ref('tickets') }} as tickets
    on scored.ticket_id = tickets.ticket_id
order by scored.question_id, rank
