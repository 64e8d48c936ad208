{#-
    How a layer runs.

    dbt compiles a layer to its kernel's plain form, which says what the layer is. The
    materialization renders the model again in the kernel's fast form,
    `postgres__<kernel>`, once for each way in which the layer is computed:

        alone      by one process, with the weights read from their table
        step       a step of a text, where a kernel has another SELECT for it
        band       some of the rows, by one of several processes: bands.sql
        several    with the weights in the session's memory, for several texts, and
        one        for one text: resident.sql

    So a kernel has no text of another way in its SELECT, and a way is a word that the
    macros of the SELECT look up: way(). What a kernel says beside its SELECT, it says
    by parallel_work() and stored_matrix().
-#}


{#-
    The ways of a layer, a dictionary:

        alone, step, band, several, one     SELECTs; those that the layer has
        work                         see parallel_work()
        weights, as                  see stored_matrix()

    sql   the model as dbt compiled it: the only way where the var `kernels` is 'plain'
-#}
{% macro program(sql) -%}
    {%- if dbt_nn.kernel_form() == 'plain' -%}
        {{ return({'alone': sql}) }}
    {%- endif -%}
    {%- set said = {} -%}
    {%- do model.update(dbt_nn_said=said) -%}
    {%- set ways = {'alone': dbt_nn.rendered('alone')} -%}
    {%- if said.has_step -%}
        {%- do ways.update(step=dbt_nn.rendered('step')) -%}
    {%- endif -%}
    {%- if said.work -%}
        {%- do ways.update(band=dbt_nn.rendered('band')) -%}
        {#- a layer with a matrix has work -#}
        {%- if said.weights and dbt_nn.policy().keeps_steps and not dbt_nn.policy().is_whole -%}
            {%- do ways.update(several=dbt_nn.rendered('several'), one=dbt_nn.rendered('one')) -%}
        {%- endif -%}
    {%- endif -%}
    {%- do ways.update(said) -%}
    {{ return(ways) }}
{%- endmacro %}


{#- The model's SELECT for one way. -#}
{% macro rendered(way) -%}
    {%- do model.update(dbt_nn_way=way) -%}
    {%- set select = render(model.raw_code) | trim -%}
    {%- do model.update(dbt_nn_way=none) -%}
    {{ return(select) }}
{%- endmacro %}


{#- The way for which the model is rendered now; none while dbt compiles it. -#}
{% macro way() -%}
    {{ return(model.get('dbt_nn_way')) }}
{%- endmacro %}


{#- Notes what a kernel says beside its SELECT. -#}
{% macro say(name, value) -%}
    {%- if dbt_nn.way() -%}
        {%- do model.dbt_nn_said.update({name: value}) -%}
    {%- endif -%}
{%- endmacro %}
