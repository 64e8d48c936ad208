{#-
    What a user says of conversations: options, beside those of generation_options().

    apply_chat_template    the prompt is what a user says: {"role": "user"}
    system_prompt          a system message before the others, where there is none
    chat_template_kwargs   more variables of the template, such as Qwen3's
                           {"enable_thinking": false}
-#}
{% macro chat_options() -%}
    {{ return(['apply_chat_template', 'system_prompt', 'chat_template_kwargs']) }}
{%- endmacro %}


{#- Branches of a CASE: what is wrong with them in the jsonb `options`. -#}
{% macro chat_option_problems() -%}
when not pg_input_is_valid(options ->> 'apply_chat_template', 'boolean')
    then format(
        'apply_chat_template must be true or false, not %s', options -> 'apply_chat_template'
    )
when jsonb_typeof(options -> 'system_prompt') <> 'string'
    then format('system_prompt must be a text, not %s', options -> 'system_prompt')
when jsonb_typeof(options -> 'chat_template_kwargs') <> 'object'
    or options -> 'chat_template_kwargs' ? 'messages'
    then format(
        'chat_template_kwargs must be a mapping of variables of the chat template, not %s',
        options -> 'chat_template_kwargs'
    )
{%- endmacro %}


{#- The messages of a row, jsonb: {"messages": ...}, or {} where it has none. Of a
    column of type text they are its JSON. -#}
{% macro given_messages(fields) -%}
case
    when coalesce(jsonb_typeof({{ fields }} -> 'messages'), 'null') = 'null' then '{}'
    when jsonb_typeof({{ fields }} -> 'messages') = 'string'
        and pg_input_is_valid({{ fields }} ->> 'messages', 'jsonb')
        then jsonb_build_object('messages', ({{ fields }} ->> 'messages')::jsonb)
    else jsonb_build_object('messages', {{ fields }} -> 'messages')
end
{%- endmacro %}


{#- A row's conversation, an expression: a jsonb array of messages with the system
    prompt before them, or NULL where its prompt is text or token ids. -#}
{% macro conversation(fields, options) -%}
(
    select case
        when {{ options }} ? 'system_prompt' and said.messages -> 0 ->> 'role' is distinct from 'system'
            and jsonb_typeof(said.messages) = 'array'
            then jsonb_build_array(
                jsonb_build_object(
                    'role', 'system', 'content', {{ options }} -> 'system_prompt'
                )
            ) || said.messages
        else said.messages
    end
    from (
        select case
            when {{ fields }} ? 'prompt_token_ids' then null
            when {{ fields }} ? 'messages' then {{ fields }} -> 'messages'
            when case
                when pg_input_is_valid({{ options }} ->> 'apply_chat_template', 'boolean')
                    then ({{ options }} ->> 'apply_chat_template')::boolean
            end and {{ fields }} ? 'prompt'
                then jsonb_build_array(
                    jsonb_build_object('role', 'user', 'content', {{ fields }} -> 'prompt')
                )
        end as messages
    ) as said
)
{%- endmacro %}


{#- Branches of a CASE: why a row's conversation can't be read. -#}
{% macro conversation_problems(fields, options, config) -%}
when {{ fields }} ?& array['prompt', 'messages']
    then 'has both a prompt and messages: give one of them'
when jsonb_typeof({{ fields }} -> 'messages') <> 'array'
    or {{ fields }} -> 'messages' = '[]'
    or jsonb_path_exists({{ fields }} -> 'messages', 'strict $[*] ? (@.type() != "object")', silent => true)
    then format(
        'messages must be an array of objects, like {"role": "user", "content": "Hello"}, '
        'at least one, not %s',
        left({{ fields }} ->> 'messages', 200)
    )
{#- templates leave such a message out, or write an empty one #}
when exists (
    select from jsonb_array_elements({{ fields }} -> 'messages') as message
    where coalesce(message ->> 'role', '') = ''
        or message ->> 'content' is null and not message ? 'tool_calls'
)
    then (
        select format(
            'message %s has no %s',
            said.i,
            case when coalesce(said.message ->> 'role', '') = '' then 'role' else 'content' end
        )
        from jsonb_array_elements({{ fields }} -> 'messages')
            with ordinality as said (message, i)
        where coalesce(said.message ->> 'role', '') = ''
            or said.message ->> 'content' is null and not said.message ? 'tool_calls'
        order by said.i
        limit 1
    )
when {{ dbt_nn.conversation(fields, options) | indent(4) }} is not null
    and {{ dbt_nn.hyperparameter(config, 'chat_program', 'jsonb') | indent(4) }} is null
    then coalesce(
        'the checkpoint''s chat template can''t be run: '
        || {{ dbt_nn.hyperparameter(config, 'chat_problem', 'text') | indent(8) }},
        'the checkpoint has no chat template: give a prompt as the network was trained '
        'on it, or load a checkpoint that has one'
    )
{%- endmacro %}


{#-
    Rows of messages as a conversation: an aggregate expression, jsonb, of
    [{"role": ..., "content": ...}, ...] in their order.

        select
            chat_id as prompt_id,
            dbt_nn.messages('role', 'content', 'said_at') as messages
        from said
        group by chat_id
-#}
{% macro messages(role, content, position) -%}
jsonb_agg(
    jsonb_build_object('role', {{ role }}, 'content', {{ content }})
    order by {{ position }}
)
{%- endmacro %}
