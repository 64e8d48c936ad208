-- Pairs of tickets that say the same, each pair once, the later ticket as the copy.
-- The inner query is of the form that the index of the vectors answers: each ticket
-- costs a look-up, and not a comparison with every other one.
with pairs as (
    select
        least(ticket.key, other.key) as ticket_id,
        greatest(ticket.key, other.key) as duplicate_id,
        -- a pair is found from both ends, or from one where the other has nearer ones
        min(other.distance) as distance
    from {{ ref('minilm_embeddings') }} as ticket
    cross join lateral (
        select
            neighbour.key,
            neighbour.embedding <=> ticket.embedding as distance
        from {{ ref('minilm_embeddings') }} as neighbour
        order by neighbour.embedding <=> ticket.embedding
        limit 11  -- the ticket itself, and ten more
    ) as other
    where ticket.embedding is not null
        and other.key <> ticket.key
        and other.distance <= {{ var('duplicate_distance') }}
    group by 1, 2
)

select
    pairs.ticket_id,
    tickets.subject,
    pairs.duplicate_id,
    duplicates.subject as duplicate_subject,
    round(pairs.distance::numeric, 4) as distance
from pairs
inner join {{ ref('tickets') }} as tickets
    on pairs.ticket_id = tickets.ticket_id
inner join {{ ref('tickets') }} as duplicates
    on pairs.duplicate_id = duplicates.ticket_id
order by pairs.distance, pairs.ticket_id
