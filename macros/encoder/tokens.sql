{#-
    The tokens of the current batch's texts: of the first that is not finished. Where
    all are finished they are what the layers have already, so that no layer is computed
    again; or those of the last batch.

    texts     relation made by encoder_texts()
    earlier   the table itself, if it is there already it has what the layers have
    batch     expression: of which batch; none: the first that is not finished. Of none
              where sessions share several: each takes one, see session.sql.
    -> (sequence_id, position, token_id, type_id)
-#}
{% macro encoder_tokens(texts, earlier=none, batch=none) -%}
    {%- set is_known = earlier and dbt_nn.builds_models() and not should_full_refresh()
        and load_relation(earlier) is not none -%}
select
    texts.sequence_id,
    (token.i - 1)::integer as position,
    token.token_id,
    case when token.i > texts.first_tokens then 1 else 0 end as type_id
from {{ texts }} as texts
cross join unnest(texts.token_ids) with ordinality as token (token_id, i)
where texts.batch = {{ batch or dbt_nn.first_batch(texts, or_last=not is_known) }}
{%- if is_known %}
union all
select
    known.sequence_id,
    known.position,
    known.token_id,
    known.type_id
from {{ earlier }} as known
where not exists (select from {{ texts }} as unfinished where unfinished.finished_at is null)
{%- endif %}
order by sequence_id, position
{%- endmacro %}
