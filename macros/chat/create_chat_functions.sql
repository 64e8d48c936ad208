{#-
    The database functions that run a chat template: statements for an on-run-start
    hook. dbt_nn/checkpoint/chat.py makes its program, and says what each instruction
    is; these walk it, as Jinja does (jinja2 3.1), with Python's values:

        str, int and float, bool, None, list, dict   as jsonb; None is its null
        undefined                                    NULL
        a namespace                                  {"$namespace": "its key"}

    A template comes from a stranger, and can do no more than what is written here: it
    reads its variables and makes text. It ends after chat_seconds(), and with
    chat_length() characters. What can't be done as Python does it fails.
-#}
{% macro create_chat_functions() -%}
{{ dbt_nn.create_chat_value_functions() }}

{{ dbt_nn.create_chat_call_functions() }}

{#
    Statements, one after the other.

    program   their instructions
    given     the variables of the template, which stay
    vars      those that it sets; in $spaces its namespaces, in $signal break or
              continue where one of them is on its way out of a loop
#}
create or replace function {{ dbt_nn.db_function('chat_body') }} (
    program jsonb, given jsonb, inout vars jsonb, out content text
)
language plpgsql stable
as $body$
declare
    node jsonb;
    piece text;
    inner_vars jsonb;
    branch jsonb;
    items jsonb[];
    targets jsonb;
    loop_of jsonb;
    i integer;
    n integer;
begin
    content := '';
    for k in 0 .. jsonb_array_length(program) - 1 loop
        if clock_timestamp() > (given ->> '$until')::timestamptz then
            raise exception 'it takes longer than {{ dbt_nn.chat_seconds() }} s';
        end if;
        node := program -> k;
        piece := '';
        case node ->> 0
        when 'text' then
            piece := node ->> 1;
        when 'out' then
            piece := {{ dbt_nn.db_function('chat_text_of') }}(
                {{ dbt_nn.db_function('chat_value') }}(node -> 1, given, vars)
            );
        when 'if' then
            branch := node -> 2;
            for b in 0 .. jsonb_array_length(node -> 1) - 1 loop
                if {{ dbt_nn.db_function('chat_truth') }}(
                    {{ dbt_nn.db_function('chat_value') }}(node -> 1 -> b -> 0, given, vars)
                ) then
                    branch := node -> 1 -> b -> 1;
                    exit;
                end if;
            end loop;
            select ran.vars, ran.content into vars, piece
            from {{ dbt_nn.db_function('chat_body') }}(branch, given, vars) as ran;
        when 'for' then
            targets := node -> 1;
            items := {{ dbt_nn.db_function('chat_items') }}(
                {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars)
            );
            if node -> 3 <> 'null' then
                items := array(
                    select item
                    from unnest(items) with ordinality as listed (item, at)
                    where {{ dbt_nn.db_function('chat_truth') }}(
                        {{ dbt_nn.db_function('chat_value') }}(
                            node -> 3,
                            given,
                            {{ dbt_nn.db_function('chat_bound') }}(vars, targets, item)
                        )
                    )
                    order by at
                );
            end if;
            n := cardinality(items);
            for i in 1 .. n loop
                loop_of := jsonb_build_object(
                    'index', i, 'index0', i - 1, 'first', i = 1, 'last', i = n,
                    'length', n, 'revindex', n - i + 1, 'revindex0', n - i
                );
                if i > 1 and items[i - 1] is not null then
                    loop_of := loop_of || jsonb_build_object('previtem', items[i - 1]);
                end if;
                if i < n and items[i + 1] is not null then
                    loop_of := loop_of || jsonb_build_object('nextitem', items[i + 1]);
                end if;
                inner_vars := {{ dbt_nn.db_function('chat_bound') }}(vars, targets, items[i])
                || jsonb_build_object('loop', loop_of);
                select piece || ran.content, ran.vars into piece, inner_vars
                from {{ dbt_nn.db_function('chat_body') }}(node -> 4, given, inner_vars) as ran;
                vars := vars || jsonb_build_object('$spaces', inner_vars -> '$spaces');
                exit when length(piece) > {{ dbt_nn.chat_length() }};
                exit when inner_vars ->> '$signal' = 'break';
            end loop;
            if n = 0 then
                select ran.content, ran.vars into piece, inner_vars
                from {{ dbt_nn.db_function('chat_body') }}(node -> 5, given, vars) as ran;
                vars := vars || jsonb_build_object('$spaces', inner_vars -> '$spaces');
            end if;
        when 'set' then
            if node -> 2 -> 0 = '"call"' and node -> 2 -> 1 = '"namespace"' then
                vars := {{ dbt_nn.db_function('chat_namespace') }}(node, given, vars);
            else
                vars := {{ dbt_nn.db_function('chat_bound') }}(
                    vars,
                    node -> 1,
                    {{ dbt_nn.db_function('chat_value') }}(node -> 2, given, vars)
                );
            end if;
        when 'set_attribute' then
            vars := {{ dbt_nn.db_function('chat_attribute_set') }}(
                node,
                vars,
                {{ dbt_nn.db_function('chat_value') }}(node -> 3, given, vars)
            );
        when 'set_block' then
            select ran.content, ran.vars into piece, inner_vars
            from {{ dbt_nn.db_function('chat_body') }}(node -> 2, given, vars) as ran;
            vars := vars || jsonb_build_object(
                '$spaces', inner_vars -> '$spaces', node ->> 1, piece
            );
            piece := '';
        when 'with' then
            inner_vars := vars;
            for t in 0 .. jsonb_array_length(node -> 1) - 1 loop
                inner_vars := {{ dbt_nn.db_function('chat_bound') }}(
                    inner_vars,
                    jsonb_build_array(node -> 1 -> t),
                    {{ dbt_nn.db_function('chat_value') }}(node -> 2 -> t, given, vars)
                );
            end loop;
            select ran.content, ran.vars into piece, inner_vars
            from {{ dbt_nn.db_function('chat_body') }}(node -> 3, given, inner_vars) as ran;
            vars := vars || jsonb_build_object('$spaces', inner_vars -> '$spaces');
            if inner_vars ? '$signal' then
                vars := vars || jsonb_build_object('$signal', inner_vars -> '$signal');
            end if;
        when 'break', 'continue' then
            vars := vars || jsonb_build_object('$signal', node -> 0);
        end case;
        content := content || piece;
        if length(content) > {{ dbt_nn.chat_length() }} then
            raise exception 'it writes more than {{ dbt_nn.chat_length() }} characters';
        end if;
        exit when vars ? '$signal';
    end loop;
end
$body$;

{#
    The text of a conversation, as apply_chat_template(add_generation_prompt=True,
    tokenize=False) makes it; or why there is none.

    program   the template's
    tokens    {"bos_token": "<s>", ...}
    messages  [{"role": "user", "content": "..."}, ...]
    named     more variables of the template
#}
create or replace function {{ dbt_nn.db_function('chat_text') }} (
    program jsonb, tokens jsonb, messages jsonb, named jsonb,
    out content text, out problem text
)
language plpgsql stable
as $body$
begin
    content := (
        {{ dbt_nn.db_function('chat_body') }}(
            program,
            tokens
            || jsonb_build_object(
                'messages', (
                    {#- keys that are null count as missing, as in transformers #}
                    select jsonb_agg(
                        (
                            select coalesce(jsonb_object_agg(field.key, field.value), '{}')
                            from jsonb_each(said.message) as field
                            where field.value <> 'null'
                        )
                        order by said.i
                    )
                    from jsonb_array_elements(messages)
                        with ordinality as said (message, i)
                ),
                'add_generation_prompt', true,
                'tools', null, 'documents', null
            )
            || coalesce(named, '{}')
            || jsonb_build_object(
                '$until', clock_timestamp() + interval '{{ dbt_nn.chat_seconds() }} s'
            ),
            '{"$spaces": {}}'
        )
    ).content;
exception when others then
    problem := format('the chat template: %s', sqlerrm);
end
$body$;
{%- endmacro %}


{#- How long a template may take for a conversation. -#}
{% macro chat_seconds() -%}
10
{%- endmacro %}


{#- How many characters it may write. -#}
{% macro chat_length() -%}
10000000
{%- endmacro %}
