{#-
    Logits over the vocabulary for each sequence's newest position of a step.

    input           [places, n]        relation of a layer
    weights         [vocabulary, n]    relation
    all_positions   for the frontier's every position instead
    -> (place, logits real[vocabulary]); token t has logits[t + 1]. An array
       and not a vector, since a vector ends at 16,000 elements.

    Behaves as the lm_head of transformers' GPT2LMHeadModel.
-#}
{% macro lm_head(input, weights, all_positions=false) -%}
    {{ return(adapter.dispatch('lm_head', 'dbt_nn')(input, weights, all_positions)) }}
{%- endmacro %}


{% macro postgres__lm_head(input, weights, all_positions) -%}
{#- A band is of some features, as each place's would read all weights again. -#}
{{ parallel_work(
    '(select sum(vector_dims(x.activation)) from ' ~ at_frontier(input, 'x')
    ~ ') * (select max(feature) from ' ~ weights ~ ' where chunk = 0)',
    each_step=true,
    joined='logits'
) }}
with x as materialized (
    select {{ place('x') }}, {{ detoasted('x.activation') }} as activation
    from {{ at_frontier(input, 'x') }}
    {%- if not all_positions %}
    where not exists (
        select from {{ frontier() }} as later
        where later.sequence_id = x.sequence_id
            and later.position = x.position + 1
            and later.step = frontier.step
    )
    {%- endif %}
)

select {{ place('product') }}, product.activation as logits
from (
    {{ matmul_rows('x', weights, as='array', banded=true) | indent }}
) as product
{%- endmacro %}
