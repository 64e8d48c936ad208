{#-
    How likely the network finds each token of each choice after the prompt and the
    choice's tokens before it.

    input       relation of the last layer before the vocabulary, [places, n]
    weights     [vocabulary, n]   relation: the lm_head's
    logits      relation made by lm_head(): of the places that have them already
    prompts     relation made by text_prompts(): those with choices
    tokens      relation made by text_tokens()
    -> one row a token: (sequence_id, choice_number, position, prompt_id,
       completion_id, token_id, logprob)

    The prompt's last place predicts the first token of all choices. The loop then
    has the network read a choice of more tokens (text_choices_to_read()), and
    its places predict the tokens of all choices that begin with the same.
    Behaves as log_softmax of the logits of transformers' GPT2LMHeadModel.
-#}
{% macro text_choice_tokens(input, weights, logits, prompts, tokens) -%}
with places as (
    select
        prompts.sequence_id,
        prompts.prompt_id,
        prompts.completion_id,
        prompts.choice_token_ids,
        cardinality(prompts.prompt_token_ids) as prompt_tokens,
        frontier.position
    from {{ dbt_nn.frontier() }} as frontier
    cross join {{ dbt_nn.at_place(prompts, 'prompts', 'frontier', ['sequence_id']) }}
    where prompts.choice_token_ids is not null
        and frontier.position >= cardinality(prompts.prompt_token_ids) - 1
),

predicted as materialized (
    select
        places.sequence_id,
        places.position,
        places.prompt_id,
        places.completion_id,
        choice.number::integer as choice_number,
        (
            choice.token_ids ->> (places.position - places.prompt_tokens + 1)
        )::integer as token_id
    from places
    cross join lateral jsonb_array_elements(places.choice_token_ids)
        with ordinality as choice (token_ids, number)
    where jsonb_array_length(choice.token_ids)
        > places.position - places.prompt_tokens + 1
        and not exists (
            select from {{ tokens }} as tokens
            where tokens.sequence_id = places.sequence_id
                and tokens.position >= places.prompt_tokens
                and tokens.position <= places.position
                and tokens.token_id <> (
                    choice.token_ids ->> (tokens.position - places.prompt_tokens)
                )::integer
            offset 0
        )
),

normalized as materialized (
    select
        place.*,
        {{ dbt_nn.log_sum_exp('place.logits') | indent(8) }} as normalizer
    from (
        select
            x.sequence_id,
            x.position,
            coalesce(
                head.logits[:],
                {{ dbt_nn.matmul('x.activation', weights, as='array') | indent(16) }}
            ) as logits
        from (select distinct sequence_id, position from predicted) as place
        inner join {{ input }} as x using (sequence_id, position)
        left join {{ logits }} as head using (sequence_id, position)
        offset 0
    ) as place
)

select
    predicted.sequence_id,
    predicted.choice_number,
    predicted.position + 1 as position,
    predicted.prompt_id,
    predicted.completion_id,
    predicted.token_id,
    normalized.logits[predicted.token_id + 1]::float8
    - normalized.normalizer as logprob
from predicted
inner join normalized using (sequence_id, position)
{%- endmacro %}


{#-
    The choices of the prompts, one row each, and one of a prompt with an error.

    choice_tokens   relation made by text_choice_tokens()
    prompts         relation made by text_prompts(): those with choices
    earlier         the table itself where it is there already: only what is
                    finished since is given
    -> (prompt_id, prompt, choice_number, choice, tokens, log_likelihood: the sum
       over its tokens, mean_log_likelihood, probability, is_best, error,
       checkpoint, finished_at)

    probability is the softmax of the log-likelihoods of the prompt's choices. Of
    equals the first is the best.
-#}
{% macro text_choices(choice_tokens, prompts, earlier=none) -%}
with scored as (
    select
        prompts.sequence_id,
        prompts.prompt_id,
        prompts.prompt,
        choice.number::integer as choice_number,
        choice.text as choice,
        scores.tokens,
        scores.log_likelihood,
        scores.log_likelihood / scores.tokens as mean_log_likelihood,
        {{ dbt_nn.bounded_exp(
            'scores.log_likelihood - max(scores.log_likelihood) over one_prompt'
        ) }} as weight,
        row_number() over (
            one_prompt order by scores.log_likelihood desc, choice.number
        ) as rank,
        prompts.error,
        prompts.checkpoint,
        prompts.finished_at
    from {{ prompts }} as prompts
    left join lateral jsonb_array_elements_text(
        case when prompts.error is null then prompts.choices end
    ) with ordinality as choice (text, number) on true
    left join lateral (
        select
            count(*)::integer as tokens,
            sum(token.logprob) as log_likelihood
        from {{ choice_tokens }} as token
        where token.sequence_id = prompts.sequence_id
            and token.choice_number = choice.number
        having count(*) > 0
    ) as scores on true
    where prompts.choices is not null
        and {{ dbt_nn.is_finished_since('prompts', earlier) | indent(4) }}
    window one_prompt as (partition by prompts.sequence_id)
)

select
    prompt_id,
    prompt,
    choice_number,
    choice,
    tokens,
    log_likelihood,
    mean_log_likelihood,
    case
        when error is null
            then weight / sum(weight) over (partition by sequence_id)
    end as probability,
    case when error is null then rank = 1 end as is_best,
    error,
    checkpoint,
    finished_at
from scored
order by sequence_id, choice_number
{%- endmacro %}


{#- A statement that drops the choices of prompts that have been answered anew since,
    without choices. -#}
{% macro forget_earlier_choices(table, prompts) -%}
    delete from {{ table }} as choices
    using {{ prompts }} as prompts
    where prompts.prompt_id = choices.prompt_id
        and prompts.finished_at is not null
        and prompts.choices is null
{%- endmacro %}


{#-
    The choices that the network has still to read, of the current batch: those of
    which a token has no likelihood yet.

    prompts         relation made by text_prompts()
    tokens          relation made by text_tokens()
    choice_tokens   relation made by text_choice_tokens()
    -> (sequence_id, prompt_tokens, number, token_ids jsonb)

    Nothing else says how far a prompt is, so a run that was stopped goes on from
    there.
-#}
{% macro text_choices_to_read(prompts, tokens, choice_tokens) -%}
select
    prompts.sequence_id,
    cardinality(prompts.prompt_token_ids) as prompt_tokens,
    choice.number,
    choice.token_ids
from {{ prompts }} as prompts
cross join lateral jsonb_array_elements(prompts.choice_token_ids)
    with ordinality as choice (token_ids, number)
where {{ dbt_nn.has_choices_now('prompts', prompts, tokens) | indent(4) }}
    and jsonb_array_length(choice.token_ids) > 1
    and jsonb_array_length(choice.token_ids) > (
        select count(*) from {{ choice_tokens }} as scored
        where scored.sequence_id = prompts.sequence_id
            and scored.choice_number = choice.number
    )
{%- endmacro %}


{#- A condition: the prompt is of the current batch and has choices. -#}
{% macro has_choices_now(alias, prompts, tokens) -%}
{{ alias }}.batch = (
    select current.batch from {{ prompts }} as current
    where current.sequence_id = (select min(tokens.sequence_id) from {{ tokens }} as tokens)
)
and {{ alias }}.finished_at is null
and {{ alias }}.choice_token_ids is not null
{%- endmacro %}


{#-
    The function that takes the layers' rows of prompts with choices back to the
    prompt's end: what is left is what all choices share.

    A choice's places are made in the prompt's own sequence, one choice a step: see
    docs/design.md.
-#}
{% macro text_loop_functions(samples, network) -%}
    {%- set tokens = dbt_nn.network_relation(network ~ '_tokens') -%}
    {%- set prompts = dbt_nn.network_relation(network ~ '_prompts') -%}
    create or replace function {{ dbt_nn.rewind_function(samples) }}()
    returns void language plpgsql
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    as $rewind$
    declare
        sequence_ids integer[];
        ends integer[];
    begin
        select
            array_agg(prompts.sequence_id),
            array_agg(cardinality(prompts.prompt_token_ids))
        into sequence_ids, ends
        from {{ prompts }} as prompts
        where {{ dbt_nn.has_choices_now('prompts', prompts, tokens) | indent(12) }};
        if sequence_ids is null then
            return;
        end if;
        {%- for node in dbt_nn.layers_in_order(network)
            if node.config.meta.get('history') != 'keep' %}
        {{ dbt_nn.delete_from_ends(node.relation_name, 'block' in node.config.meta.place) }};
        {%- endfor %}
    end
    $rewind$;
{%- endmacro %}


{#- A statement of that function. Of blocks of positions those go that reach over the
    end. -#}
{% macro delete_from_ends(relation, has_blocks=false) -%}
        delete from {{ relation }} as x
        using unnest(sequence_ids, ends) as kept (sequence_id, position)
        where x.sequence_id = kept.sequence_id
            and {{ '(x.block + 1) * x.positions > kept.position' if has_blocks
                else 'x.position >= kept.position' }}
{%- endmacro %}


{% macro rewind_function(relation) -%}
    {{ adapter.quote(relation.schema) }}.{{ adapter.quote(relation.identifier ~ '_rewind') }}
{%- endmacro %}
