{#-
    Names the setting of the server that stopped a model, and how to lift it: what
    dbt prints is the server's "canceling statement due to ...". For an on-run-end
    hook; runs nothing.

    results   of dbt's context
-#}
{% macro print_timeouts(results) -%}
    {%- set timeouts = {
        'statement timeout': {
            'setting': 'statement_timeout',
            'why': 'a layer of a batch is one statement; batch_memory makes batches smaller',
        },
        'transaction timeout': {
            'setting': 'transaction_timeout',
            'why': 'a step of a batch is one transaction; batch_memory makes batches smaller',
        },
        'lock timeout': {
            'setting': 'lock_timeout',
            'why': 'it waited for another session',
        },
        'idle-in-transaction timeout': {
            'setting': 'idle_in_transaction_session_timeout',
            'why': 'dbt was slower between two statements',
        },
    } -%}
    {%- set stopped = {} -%}
    {%- for result in results if execute and result.status == 'error' -%}
        {%- for text in timeouts if 'due to ' ~ text in (result.message or '') -%}
            {%- do stopped.setdefault(text, result.node.name) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- for text, node in stopped.items() -%}
        {%- set setting = timeouts[text].setting -%}
        {%- set row = run_query(
            "select current_setting('" ~ setting ~ "'), quote_ident(session_user)"
        ).rows[0] -%}
        {%- do print(
            'the setting ' ~ setting ~ ' (' ~ row[0] ~ ' for the role ' ~ row[1]
            ~ ') stopped ' ~ node ~ ': ' ~ timeouts[text].why ~ '. Run `alter role '
            ~ row[1] ~ ' set ' ~ setting ~ ' = 0;`, and run again'
        ) -%}
    {%- endfor -%}
{%- endmacro %}
