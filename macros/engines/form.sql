{#-
    Which form of a kernel a model gets, a macro: its plain form, `default__<kernel>`,
    which reads like the formula, or what the database's engine has for it,
    `postgres__<kernel>`, which gives the same numbers sooner.

    A layer compiles to the plain form, and its materialization takes the fast one: see
    program.sql. What runs as it is compiled gets the fast one at once: another kind of
    model, a unit test, dbt show. The var `kernels: plain` makes everything plain;
    `compiled_kernels: fast` shows what runs to who wants to read it.

    While dbt parses, it is neither: no kernel calls ref(), source() or config(), and to
    write all layers' SQL would be an eighth of the work.

    plain   the macro default__<kernel>
    fast    what adapter.dispatch() finds
-#}
{% macro form(plain, fast) -%}
    {%- if not execute -%}
        {{ return(dbt_nn.unwritten) }}
    {%- endif -%}
    {%- set is_fast = dbt_nn.kernel_form() == 'fast' and (
        dbt_nn.way()
        or config.get('materialized') not in ('layer', 'generation')
        or flags.WHICH == 'show'
        or dbt_nn.kernel_form('compiled_kernels', 'plain') == 'fast'
    ) -%}
    {{ return(fast if is_fast else plain) }}
{%- endmacro %}


{#- In a kernel's place while dbt parses: nothing, of any arguments. -#}
{% macro unwritten() -%}
    {%- set _ = varargs -%}
{%- endmacro %}


{#- The var `kernels`, or `compiled_kernels`: 'fast' or 'plain'. -#}
{% macro kernel_form(name='kernels', default='fast') -%}
    {%- set kernels = var(name, default) -%}
    {%- if kernels not in ('fast', 'plain') -%}
        {{ exceptions.raise_compiler_error(
            'the var ' ~ name ~ ' is ' ~ tojson(kernels) ~ ": give 'fast' or 'plain'"
        ) }}
    {%- endif -%}
    {{ return(kernels) }}
{%- endmacro %}
