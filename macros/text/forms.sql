{#-
    Answers of a form: prompts with a regex or a json_schema, whose completions are of
    that form. The automata are in macros/forms/.
-#}

{#- The name of a prompt's form, an expression: the tokens that it allows depend on the
    checkpoint's vocabulary, too. -#}
{% macro form_id(checkpoint, options) -%}
case
    when {{ options }} ?| array['regex', 'json_schema']
        then md5(concat_ws(
            '/',
            {{ dbt_nn.checkpoint_digest(checkpoint) }},
            {{ options }} ->> 'regex',
            {{ options }} ->> 'json_schema'
        ))::uuid
end
{%- endmacro %}


{#-
    The forms of prompts, each examined once: a SELECT of (regex, json_schema, problem,
    least_bytes).

    prompts      relation with the column options, jsonb, and error
    vocabulary   of the checkpoint
-#}
{% macro examined_forms(prompts, vocabulary) -%}
select
    form.regex,
    form.json_schema,
    examined.problem,
    examined.least_bytes
from (
    select distinct
        options ->> 'regex' as regex,
        options ->> 'json_schema' as json_schema
    from {{ prompts }}
    where error is null and options ?| array['regex', 'json_schema']
) as form
cross join lateral {{ dbt_nn.db_function('examine_form') }}(
    form.regex,
    form.json_schema,
    array(
        select get_byte(token, 0)
        from {{ vocabulary }}
        where octet_length(token) = 1 and not special
    )
) as examined
{%- endmacro %}


{#-
    Why a prompt's form can't be had: an expression, a text or NULL.

    form      alias of a row of examined_forms()
    options   jsonb, an expression
    tokens    how many the prompt has, an expression
    config    relation of the checkpoint's hyper-parameters
-#}
{% macro form_problem(form, options, tokens, config) -%}
(
    select case
        when {{ form }}.problem is not null then {{ form }}.problem
        when not exists (
            select from {{ config }} as eos
            where eos.parameter = 'eos_token_id' and jsonb_typeof(eos.value) <> 'null'
        )
            then 'the checkpoint has no eos_token_id, which ends an answer of a form'
        when {{ form }}.least_bytes > room.tokens
            then format(
                'the shortest answer of its form may need %s tokens, more than %s '
                '(max_new_tokens and the rest of the context): give more',
                {{ form }}.least_bytes, room.tokens
            )
    end
    from (
        select least(
            coalesce(
                ({{ options }} ->> 'max_new_tokens')::integer,
                {{ dbt_nn.generation_options().max_new_tokens.default }}
            ),
            {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }} - {{ tokens }}
        ) as tokens
    ) as room
    where {{ options }} ?| array['regex', 'json_schema']
)
{%- endmacro %}


{#-
    The tokens that a prompt's form allows next, an expression, integer[]; NULL of a
    prompt without one.

    row          alias of the enclosing row: form_id, sequence_id, generated (how many
                 tokens the text has with the next one), max_new_tokens, position,
                 context_length
    tokens       relation made by text_tokens()
    vocabulary, config   of the checkpoint
-#}
{% macro form_tokens(row, tokens, vocabulary, config) -%}
case
    when {{ row }}.form_id is not null
        then {{ dbt_nn.db_function('form_tokens') }}(
            {{ row }}.form_id,
            {{ dbt_nn.db_function('form_state') }}(
                {{ row }}.form_id,
                {{ dbt_nn.answer_bytes(row ~ '.sequence_id', tokens, vocabulary) | indent(16) }}
            ),
            least(
                {{ row }}.max_new_tokens - {{ row }}.generated,
                {{ row }}.context_length - {{ row }}.position - 1
            ),
            (select value from {{ config }} as eos where eos.parameter = 'eos_token_id')
        )
end
{%- endmacro %}


{#- The bytes that a sequence has generated: an expression. -#}
{% macro answer_bytes(sequence_id, tokens, vocabulary) -%}
(
    select coalesce(string_agg(word.token, '' order by answer.position), '')
    from {{ tokens }} as answer
    inner join {{ vocabulary }} as word using (token_id)
    where answer.sequence_id = {{ sequence_id }} and answer.step > 0
)
{%- endmacro %}


{#- The body of a function that makes what text_sample() reads of the current batch's
    forms; called before each step's tokens are sampled. -#}
{% macro text_prepare(samples, network) -%}
    {%- set tokens = dbt_nn.network_relation(network ~ '_tokens') -%}
    {%- set prompts = dbt_nn.network_relation(network ~ '_prompts') -%}
    {%- set vocabulary = dbt_nn.network_source(network, 'vocabulary') -%}
    {%- set current -%}
    {{ prompts }} as prompts
            inner join {{ tokens }} as first
                on prompts.sequence_id = first.sequence_id and first.position = 0
            where prompts.form_id is not null and prompts.finished_at is null
    {%- endset -%}
    declare
        form record;
    begin
        {# in their order, so that sessions do not wait for each other in a circle #}
        for form in
            select distinct prompts.form_id, prompts.regex, prompts.json_schema::text as json_schema
            from {{ current }}
            order by prompts.form_id
        loop
            perform {{ dbt_nn.db_function('make_form') }}(
                form.form_id,
                {{ dbt_nn.literal(network) }},
                form.regex,
                form.json_schema,
                {{ dbt_nn.literal(vocabulary) }}
            );
        end loop;
        if not found then
            return;
        end if;
        for form in
            select distinct
                prompts.form_id,
                {{ dbt_nn.db_function('form_state') }}(
                    prompts.form_id,
                    {{ dbt_nn.answer_bytes('prompts.sequence_id', tokens, vocabulary) | indent(20) }}
                ) as state
            from {{ current }}
            order by 1, 2
        loop
            perform {{ dbt_nn.db_function('make_form_masks') }}(form.form_id, form.state);
        end loop;
    end
{%- endmacro %}


{#- A statement that forgets the network's forms of which no prompt is unfinished. -#}
{% macro forget_forms(prompts, network) -%}
    delete from {{ dbt_nn.db_function('form_automata') }} as automaton
    where automaton.network = {{ dbt_nn.literal(network) }}
        and not exists (
            select from {{ prompts }} as prompts
            where prompts.form_id = automaton.form_id and prompts.finished_at is null
        )
{%- endmacro %}
