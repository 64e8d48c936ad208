{#-
    lm_head() in bands of features: a band of places would read all of the vocabulary's
    weights again.
-#}

{% macro postgres__lm_head(input, weights, all_positions) -%}
{#- A band is of some features, as each place's would read all weights again. -#}
{{ dbt_nn.parallel_work(
    '(select sum(vector_dims(x.activation)) from ' ~ dbt_nn.at_frontier(input, 'x')
    ~ ') * (select max(feature) from ' ~ weights ~ ' where chunk = 0)',
    each_step=true,
    joined='logits'
) }}
with x as {{ 'materialized ' if dbt_nn.way() != 'one' }}(
    select {{ dbt_nn.place('x') }}, {{ dbt_nn.detoasted('x.activation') }} as activation
    from {{ dbt_nn.at_frontier(input, 'x') }}
    {%- if not all_positions %}
    where {{ dbt_nn.is_newest_position('x') }}
    {%- endif %}
)

select {{ dbt_nn.place('product') }}, product.activation as logits
from (
    {{ dbt_nn.matmul_rows('x', weights, as='array', banded=true) | indent }}
) as product
{%- endmacro %}
