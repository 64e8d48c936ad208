-- The five tickets nearest to each question.
with found as (
    {{ dbt_nn.nearest(
        'minilm', queries=ref('questions'), query_key='question_id',
        query_text='question', k=5
    ) | indent(4) }}
)

select
    questions.question,
    found.rank,
    tickets.ticket_id,
    tickets.subject,
    round(found.distance::numeric, 4) as distance
from found
inner join {{ ref('questions') }} as questions
    on found.query_key = questions.question_id
inner join {{ ref('tickets') }} as tickets
    on found.key = tickets.ticket_id
order by questions.question_id, found.rank
