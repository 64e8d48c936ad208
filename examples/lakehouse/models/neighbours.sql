with vectors as (
    select
        key,
        embedding
    from {{ source('lake', 'vectors') }}
    where error is null
),

pairs as (
    select
        one.key as id,
        other.key as neighbour_id,
        -- vectors of length 1: their inner product is the cosine
        aggregate(
            zip_with(one.embedding, other.embedding, (a, b) -> double(a) * double(b)),
            double(0),
            (sum, product) -> sum + product
        ) as similarity
    from vectors as one
    inner join vectors as other
        on one.key <> other.key
),

ranked as (
    select
        id,
        neighbour_id,
        similarity,
        row_number() over (
            partition by id
            order by similarity desc, neighbour_id
        ) as rank
    from pairs
)

select
    ranked.id,
    ranked.rank,
    ranked.neighbour_id,
    ranked.similarity,
    texts.text
from ranked
inner join {{ source('lake', 'texts') }} as texts
    on ranked.neighbour_id = texts.id
where ranked.rank <= {{ var('neighbours') }}
