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
    {%- set kernel = dbt_nn.form(dbt_nn.default__lm_head, adapter.dispatch('lm_head', 'dbt_nn')) -%}
    {{ return(kernel(input, weights, all_positions)) }}
{%- endmacro %}


{% macro default__lm_head(input, weights, all_positions) -%}
select
    {{ dbt_nn.place('x') }},
    {{ dbt_nn.matmul('x.activation', weights, as='array') }} as logits
from {{ dbt_nn.at_frontier(input, 'x') }}
{%- if not all_positions %}
where {{ dbt_nn.is_newest_position('x') }}
{%- endif %}
{%- endmacro %}


{#- A condition: no later position of the row's sequence is at the frontier. With OFFSET
    it is planned by itself, see at_place(). -#}
{% macro is_newest_position(alias) -%}
    not exists (
        select from {{ dbt_nn.frontier() }} as later
        where later.sequence_id = {{ alias }}.sequence_id
            and later.position = {{ alias }}.position + 1
            and later.step = frontier.step
        offset 0
    )
{%- endmacro %}
