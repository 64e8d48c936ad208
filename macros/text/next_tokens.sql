{#-
    The likeliest tokens after each prompt of the last batch: a SELECT of n rows a
    prompt (prompt_id, rank, token_id, token, logit, probability), from the network's
    own distribution, before any option. To be asked with

        dbt show --limit 10 --inline "{{ next_tokens('gpt2', 10) }}"

    network   its name, the prefix of its models
    n         how many tokens

    probability is torch's softmax of the logits, in float8.
-#}
{% macro next_tokens(network, n=10) -%}
    {%- if n is not integer or n < 1 -%}
        {{ exceptions.raise_compiler_error(
            network ~ '_next_tokens: n is ' ~ tojson(n) ~ ', and must be a whole number above 0'
        ) }}
    {%- endif -%}
select
    prompts.prompt_id,
    row_number() over (
        partition by prompts.prompt_id order by best.x desc, best.token_id
    ) as rank,
    best.token_id,
    {{ dbt_nn.db_function('decode_utf8') }}(vocabulary.token) as token,
    best.x as logit,
    {{ dbt_nn.bounded_exp('best.x - logits.maximum') }} / logits.exponentials as probability
from {{ ref(network ~ '_prompts') }} as prompts
inner join {{ ref(network ~ '_lm_head') }} as head
    on prompts.sequence_id = head.sequence_id
    and cardinality(prompts.prompt_token_ids) - 1 = head.position
cross join lateral (
    select
        whole.maximum,
        (
            select sum({{ dbt_nn.bounded_exp('score.x - whole.maximum') }})
            from unnest(head.logits) as score (x)
        ) as exponentials
    from (
        select max(score.x)::float8 as maximum from unnest(head.logits) as score (x)
    ) as whole
) as logits
cross join lateral (
    {{ dbt_nn.likeliest_tokens('head.logits', n) | indent(4) }}
) as best
left join {{ source(network, 'vocabulary') }} as vocabulary
    on best.token_id = vocabulary.token_id
order by prompts.prompt_id, rank
{%- endmacro %}


{#- The same by the name of the bundled network. -#}
{% macro gpt2_next_tokens(n=10, network='gpt2') -%}
    {{ dbt_nn.next_tokens(network, n) }}
{%- endmacro %}
