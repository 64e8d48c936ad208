{{ gpt2_frontier(ref('unit_tokens')) }}
