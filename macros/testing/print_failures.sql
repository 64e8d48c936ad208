{#-
    Prints the first rows of each data test of ours that failed, which dbt
    itself only counts. For an on-run-end hook; runs nothing.

    results   of dbt's context
-#}
{% macro print_failures(results) -%}
    {%- for result in results
        if execute and result.status == 'fail'
        and result.node.resource_type == 'test'
        and 'dbt_nn' in (result.node.package_name, (result.node.test_metadata or {}).namespace) -%}
        {%- set rows = run_query(
            'select * from (' ~ result.node.compiled_code ~ ') as failure limit 3'
        ) -%}
        {%- do print('\n' ~ result.node.name ~ ': ' ~ result.failures ~ ' failed') -%}
        {%- for row in rows.rows -%}
            {%- for column in rows.column_names -%}
                {%- do print('  %-22s %.200s' | format(column, row[column])) -%}
            {%- endfor -%}
            {%- do print('') -%}
        {%- endfor -%}
    {%- endfor -%}
{%- endmacro %}
