{{ dbt_nn.text_frontier(ref('unit_tokens')) }}
