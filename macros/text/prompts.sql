{#-
    The prompts with their generation options, one row a sequence: what the
    network has to complete, and what it has completed.

    prompts     relation: prompt_id, and prompt, messages or prompt_token_ids; a column
                named like an option (see generation_options and chat_options) sets it
                for the row
    options     of all rows, see run_options
    checkpoint  its schema
    vocabulary, merges, config   of the checkpoint
    earlier     the table itself where it is there already: of a prompt that is
                unchanged no row is given
    interventions   the user's relation of them, see interventions.sql
    -> (sequence_id, prompt_id, prompt, prompt_token_ids, the options,
       choice_token_ids, request, error, completion_id, checkpoint, batch,
       finished_at)

    Everything in a prompt is literal text. It gets the tokens before and after it
    that the tokenizer's post-processor puts there; one without any token is read as
    the checkpoint's bos token, as transformers' generate() does. `request` is a
    digest of all that decides the completion, the checkpoint included;
    completion_id names this attempt, to which tokens and layers belong.

    A conversation (messages, or the option apply_chat_template) is the text that the
    checkpoint's chat template makes of it, which has the tokens around it already:
    see create_chat_functions().

    A prompt with choices is not completed: max_new_tokens is 0. choice_token_ids has
    each choice's tokens, a jsonb array of arrays, as lm-evaluation-harness takes them
    (TemplateLM._encode_pair): the prompt is encoded without the blanks that it ends
    with, the prompt and the choice as one text, and what comes after as many tokens
    as the prompt has is the choice. Where the prompt is given as token ids, a choice
    is encoded by itself.

    A prompt with a regex or a json_schema has a form_id, which names the form and the
    checkpoint.

    A row that cannot be completed says why in `error`. What concerns all rows
    (an option of all, a prompt that is of no text type, a column with nearly the
    name of an option, a prompt_id that is NULL or there twice, a checkpoint
    without a tokenizer) raises an error, before anything of an earlier run is
    replaced.
-#}
{% macro text_prompts(
    prompts, options, checkpoint, vocabulary, merges, config, earlier=none, interventions=none
) -%}
    {%- do dbt_nn.check_settings() -%}
    {%- set names = dbt_nn.generation_options() | list + dbt_nn.chat_options() | list -%}
with options as materialized (
    {{ dbt_nn.run_options(options, names, 'generation') | indent(4) }}
),

checked_options as materialized (
    select options
    from options
    where {{ dbt_nn.db_function('check_input') }}(
        'the generation options: ' || case
            {{ dbt_nn.generation_option_problems() | indent(8) }}
            {{ dbt_nn.chat_option_problems() | indent(12) }}
        end
    )
),

{# an alias that is the name of no column #}
prompts as materialized (
    select
        dbt_nn_row.prompt_id,
        {{ dbt_nn.given_row('dbt_nn_row') | indent(8) }} as fields,
        pg_typeof(dbt_nn_row) as row_type,
        count(*) over (partition by dbt_nn_row.prompt_id) as namesakes
    from {{ dbt_nn.sampled(prompts, 'dbt_nn_row') }}
),

given_columns as materialized (
    {{ dbt_nn.given_columns('prompts') | indent }}
),

relation as materialized (
    select coalesce(
        {{ dbt_nn.prompt_type_problem('given_columns') | indent(8) }},
        {{ dbt_nn.misspelt_column('given_columns', names + ['prompt_token_ids']) | indent(8) }}
    ) as problem
),

requested as materialized (
    select
        prompts.prompt_id,
        {{ dbt_nn.given_fields(
            'prompts.fields', ['prompt', 'prompt_token_ids'], 'given_columns'
        ) | indent(8) }}
        || {{ dbt_nn.given_messages('prompts.fields') | indent(8) }} as fields,
        checked_options.options
        || {{ dbt_nn.given_fields('prompts.fields', names, 'given_columns') | indent(8) }}
        as options
    from prompts
    cross join checked_options
    cross join relation
    where {{ dbt_nn.db_function('check_input') }}(
        'the relation of prompts '
        || {{ dbt_nn.literal(dbt_nn.whole_relation(prompts)) }} || ': ' || case
            when relation.problem is not null then relation.problem
            when prompt_id is null then 'prompt_id is NULL'
            when namesakes > 1
                then format('prompt_id %s is there %s times', prompt_id, namesakes)
            when not prompts.fields ?| array['prompt', 'messages', 'prompt_token_ids']
                then 'has none of the columns prompt, messages and prompt_token_ids'
        end
    )
),

{% if interventions %}intervened as materialized (
    {{ dbt_nn.intervention_digests('requested', interventions) | indent(4) }}
),

{% endif -%}
digested as (
    select
        requested.*,
        md5(concat_ws(
            '/',
            {{ dbt_nn.checkpoint_digest(checkpoint) }},
            fields -> 'prompt',
            fields -> 'prompt_token_ids',
            fields -> 'messages',
            options
            {%- if interventions %},
            (
                select intervened.digest
                from intervened
                where intervened.prompt_id = requested.prompt_id
            )
            {%- endif %}
        ))::uuid as request
    from requested
),

asked as materialized (
    select
        {%- if earlier %}
        (select coalesce(max(sequence_id), 0) from {{ earlier }}) +
        {%- endif %}
        row_number() over (order by prompt_id) as sequence_id,
        digested.*,
        fields ? 'prompt_token_ids' as is_given,
        {{ dbt_nn.conversation('fields', 'options') | indent(8) }} as conversation,
        case
            when fields = '{}' then 'has no prompt, messages or prompt_token_ids'
            when jsonb_typeof(fields -> 'prompt_token_ids') <> 'array'
                then format(
                    'prompt_token_ids must be an array of token ids, not %s',
                    fields -> 'prompt_token_ids'
                )
            when exists (
                select
                from jsonb_array_elements_text(fields -> 'prompt_token_ids') as element
                where element is null or not pg_input_is_valid(element, 'integer')
            )
                then format(
                    'prompt_token_ids must be token ids, not %s',
                    fields -> 'prompt_token_ids'
                )
            {{ dbt_nn.generation_option_problems() | indent(8) }}
            {{ dbt_nn.chat_option_problems() | indent(8) }}
            {{ dbt_nn.conversation_problems('fields', 'options', config) | indent(8) }}
        end as refusal
    from digested
    {%- if earlier %}
    where not exists (
        select from {{ earlier }} as earlier
        where earlier.prompt_id = digested.prompt_id
            and earlier.request = digested.request
    )
    {%- endif %}
),

checked as materialized (
    select
        asked.*,
        read.prompt,
        case
            when asked.is_given then null
            when asked.options ? 'choices'
                then rtrim(read.prompt, {{ dbt_nn.python_blanks() }})
            else read.prompt
        end as text,
        coalesce(asked.refusal, chat.problem) as error
    from asked
    left join lateral (
        select
            ran.content,
            ran.problem
        from {{ dbt_nn.db_function('chat_text') }}(
            {{ dbt_nn.hyperparameter(config, 'chat_program', 'jsonb') | indent(12) }},
            {{ dbt_nn.hyperparameter(config, 'chat_tokens', 'jsonb') | indent(12) }},
            asked.conversation,
            asked.options -> 'chat_template_kwargs'
        ) as ran
        where asked.conversation is not null and asked.refusal is null
    ) as chat on true
    cross join lateral (
        select coalesce(chat.content, asked.fields ->> 'prompt') as prompt
    ) as read
),

{# a text of its own for each choice, by numbers that no sequence has #}
choice_texts as materialized (
    select
        -row_number() over () as text_id,
        checked.sequence_id,
        choice.number,
        case when checked.is_given then '' else checked.prompt end
        || choice.text as text
    from checked
    cross join lateral jsonb_array_elements_text(checked.options -> 'choices')
        with ordinality as choice (text, number)
    where checked.error is null
),

texts as materialized (
    select
        sequence_id,
        text as prompt
    from checked
    where error is null and not is_given
    union all
    select
        text_id,
        text
    from choice_texts
),

encoded as materialized (
    select
        sequence_id,
        array_agg(token_id order by position) as ids
    from (
        {{ dbt_nn.byte_pair_encode('texts', vocabulary, merges, config=config) | indent(8) }}
    ) as token
    group by sequence_id
),

choices as materialized (
    select
        choice_texts.sequence_id,
        jsonb_agg(
            whole.ids[coalesce(cardinality(context.ids), 0) + 1 :]
            order by choice_texts.number
        ) as token_ids
    from choice_texts
    left join encoded as whole on whole.sequence_id = choice_texts.text_id
    left join encoded as context on context.sequence_id = choice_texts.sequence_id
    group by choice_texts.sequence_id
),

tokenized as materialized (
    select
        checked.*,
        choices.token_ids as choice_token_ids,
        case
            when checked.error is not null then null
            when token.ids = '{}'
                then array[{{ dbt_nn.hyperparameter(config, 'bos_token_id') }}]
            else token.ids
        end as token_ids
    from checked
    left join encoded using (sequence_id)
    left join choices using (sequence_id)
    cross join lateral (
        select case
            when checked.error is not null then null
            when checked.is_given then array(
                select element::integer
                from jsonb_array_elements_text(checked.fields -> 'prompt_token_ids')
                    with ordinality as given (element, i)
                order by i
            )
            when checked.conversation is not null then coalesce(encoded.ids, '{}')
            else {{ dbt_nn.token_ids_of(config, 'prefix_token_ids') | indent(12) }}
                || coalesce(encoded.ids, '{}')
                {#- a choice goes on where the prompt ends #}
                || case
                    when checked.options ? 'choices' then '{}'
                    else {{ dbt_nn.token_ids_of(config, 'suffix_token_ids') | indent(20) }}
                end
        end as ids
    ) as token
    where {{ dbt_nn.db_function('check_input') }}(
        case
            when checked.error is null
                and not checked.is_given
                and checked.text <> ''
                and encoded.ids is null
                then format(
                    'prompt_id %s: the checkpoint has no tokenizer: give '
                    'prompt_token_ids instead of a prompt', checked.prompt_id
                )
        end
    )
),

forms as materialized (
    {{ dbt_nn.examined_forms('checked', vocabulary) | indent(4) }}
),

bounded as (
    select
        tokenized.*,
        coalesce(
            error,
            case
                when cardinality(token_ids) > {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }}
                    then format(
                        'the prompt has %s tokens, more than the context of %s '
                        '(max_position_embeddings): shorten it',
                        cardinality(token_ids),
                        {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }}
                    )
                when unknown.token_id is not null
                    then format(
                        'token id %s is not in the vocabulary of %s',
                        unknown.token_id, {{ dbt_nn.hyperparameter(config, 'vocab_size') }}
                    )
                else coalesce(
                    wrong_choice.problem,
                    {{ dbt_nn.form_problem(
                        'forms', 'tokenized.options', 'cardinality(token_ids)', config
                    ) | indent(20) }}
                )
            end
        ) as problem
    from tokenized
    left join forms
        on forms.regex is not distinct from tokenized.options ->> 'regex'
        and forms.json_schema is not distinct from tokenized.options ->> 'json_schema'
    cross join lateral (
        select max(token_id) as token_id
        from unnest(tokenized.token_ids) as token_id
        where token_id < 0
            or token_id >= {{ dbt_nn.hyperparameter(config, 'vocab_size') }}
    ) as unknown
    left join lateral (
        select case
            when choice.n = 0
                then format(
                    'the choice %s adds no token to the prompt: end the prompt where '
                    'a word ends',
                    choice.text
                )
            else format(
                'the prompt and the choice %s have %s tokens, more than the context '
                'of %s (max_position_embeddings): shorten them',
                choice.text,
                cardinality(token_ids) + choice.n,
                {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }}
            )
        end as problem
        from (
            select
                choice.number,
                tokenized.options -> 'choices' -> choice.number::integer - 1 as text,
                coalesce(jsonb_array_length(nullif(choice.token_ids, 'null')), 0) as n
            from jsonb_array_elements(tokenized.choice_token_ids)
                with ordinality as choice (token_ids, number)
        ) as choice
        where choice.n = 0
            or cardinality(token_ids) + choice.n
            > {{ dbt_nn.hyperparameter(config, 'max_position_embeddings') }}
        order by choice.number
        limit 1
    ) as wrong_choice on true
),

{# of a row with an error the defaults: its own may not have their types #}
accepted as materialized (
    select
        bounded.*,
        case
            when problem is not null then '{}'
            when choice_token_ids is null then bounded.options
            else '{"prompt_logprobs": false}' || bounded.options || '{"max_new_tokens": 0}'
        end as valid_options
    from bounded
),

typed as (
    select
        sequence_id::integer as sequence_id,
        prompt_id,
        prompt,
        token_ids as prompt_token_ids,
        coalesce(
            (valid_options ->> 'do_sample')::boolean,
            valid_options ?| array['temperature', 'top_k', 'top_p', 'min_p']
        ) as do_sample,
        {%- for name, option in dbt_nn.generation_options().items()
            if name not in ('do_sample', 'prompt_logprobs', 'stop_strings', 'choices') %}
        coalesce(
            (valid_options ->> '{{ name }}')::{{ option.type }}, {{ option.default }}
        ) as {{ name }},
        {%- endfor %}
        coalesce(
            (valid_options ->> 'prompt_logprobs')::boolean,
            (valid_options ->> 'max_new_tokens')::integer = 0,
            false
        ) as prompt_logprobs,
        case
            when jsonb_typeof(valid_options -> 'stop_strings') = 'string'
                then array[valid_options ->> 'stop_strings']
            else array(
                select jsonb_array_elements_text(valid_options -> 'stop_strings')
            )
        end as stop_strings,
        options -> 'choices' as choices,
        case when problem is null then choice_token_ids end as choice_token_ids,
        case
            when problem is null
                then {{ dbt_nn.form_id(checkpoint, 'options') | indent(16) }}
        end as form_id,
        request,
        problem as error
    from accepted
),

filled as (
    select
        typed.*,
        ceil({{ dbt_nn.text_batches_filled(config, checkpoint) | indent(8) }}) as batches_filled
    from (
        select
            typed.*,
            {{ dbt_nn.prompts_per_batch() or 'null' }} as prompts_per_batch
        from typed
    ) as typed
)

select
    {%- for name in ['sequence_id', 'prompt_id', 'prompt', 'prompt_token_ids']
        + dbt_nn.generation_options() | list
        + ['choice_token_ids', 'form_id', 'request', 'error'] %}
    {{ name }},
    {%- endfor %}
    gen_random_uuid() as completion_id,
    {{ dbt_nn.literal(checkpoint) }} as checkpoint,
    case
        when error is null then (
            dense_rank() over (order by batches_filled)
            {%- if earlier %}
            + (select coalesce(max(batch), 0) from {{ earlier }})
            {%- endif %}
        )::integer
    end as batch,
    case when error is not null then now() end as finished_at
from filled
{%- endmacro %}


{#- What is wrong with the types of the user's columns, which are as in
    given_columns(): an expression, a text or NULL. -#}
{% macro prompt_type_problem(columns) -%}
(
    select format('%s is of type %s: ', columns.name, columns.type) || case columns.name
        when 'prompt'
            then 'give a text (text, varchar, char, citext, name or a domain over one)'
                || case when columns.type = 'bytea'::regtype
                    then ', as convert_from(prompt, ''UTF8'') makes it'
                    else ''
                end
        else 'give an array of integers, or a jsonb array'
    end
    from {{ columns }} as columns
    where columns.name = 'prompt' and columns.category <> 'S'
        or columns.name = 'prompt_token_ids'
        and columns.category <> 'A'
        and columns.type not in ('json'::regtype, 'jsonb'::regtype)
    order by columns.name
    limit 1
)
{%- endmacro %}


{#- A statement that forgets prompts which were withdrawn before they were
    complete. -#}
{% macro forget_withdrawn_prompts(table, prompts) -%}
    delete from {{ table }} as earlier
    where earlier.finished_at is null
        and not exists (
            select from {{ dbt_nn.whole_relation(prompts) }} as prompts
            where prompts.prompt_id = earlier.prompt_id
        )
{%- endmacro %}


{#- The characters that Python's str.rstrip() takes from a text's end: a literal. -#}
{% macro python_blanks() -%}
E' \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
{%- endmacro %}


{#- An array of tokens in config, by its parameter; empty where it has none. -#}
{% macro token_ids_of(config, parameter) -%}
array(
    select id::integer
    from jsonb_array_elements_text(
        {{ dbt_nn.hyperparameter(config, parameter, 'jsonb') }}
    ) with ordinality as token (id, i)
    order by i
)
{%- endmacro %}
