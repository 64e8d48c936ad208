{#-
    How large each layer's activations are: the L2 norm at each place.

    tokens   relation made by text_insight_tokens()
    layers   dicts of `layer`, a relation of [places, n]; `part`, the part of the network
             that it is of, like h.3
    -> one row a layer and a place: (layer_name, part, sequence_id, prompt_id, position,
       norm)
-#}
{% macro layer_norms(tokens, layers) -%}
{%- for item in layers %}
{{ 'union all' if not loop.first }}
select
    '{{ item.layer.identifier }}' as layer_name,
    '{{ item.part }}' as part,
    tokens.sequence_id,
    tokens.prompt_id,
    tokens.position,
    sqrt({{ dbt_nn.dot('x.activation', 'x.activation') }}) as norm
from {{ tokens }} as tokens
inner join {{ item.layer }} as x using (sequence_id, position)
{%- endfor %}
{%- endmacro %}
