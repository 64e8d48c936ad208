-- The 20 tickets nearest to each question, to be ranked anew: a row a pair of texts.
with found as (
    {{ dbt_nn.nearest(
        'minilm', queries=ref('questions'), query_key='question_id',
        query_text='question', k=20
    ) | indent(4) }}
)

select
    questions.question_id || '/' || texts.ticket_id as pair,
    questions.question_id,
    questions.question,
    texts.ticket_id,
    texts.text,
    found.rank as rank_by_meaning
from found
inner join {{ ref('questions') }} as questions
    on found.query_key = questions.question_id
inner join {{ ref('ticket_texts') }} as texts
    on found.key = texts.ticket_id
