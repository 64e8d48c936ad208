-- What is embedded of a ticket.
select
    ticket_id,
    subject || '. ' || body as text
from {{ ref('tickets') }}
