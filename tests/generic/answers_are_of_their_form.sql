{#-
    The completion of each prompt with a regex or a json_schema is of that form; with a
    schema it is JSON.

    prompts   relation made by text_prompts()

    Fails with a row for each completion that is not: (prompt_id, form, completion,
    problem).
-#}
{% test answers_are_of_their_form(model, prompts) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with answers as materialized (
    select
        prompts.prompt_id,
        prompts.regex,
        prompts.json_schema::text as json_schema,
        model.completion
    from {{ prompts }} as prompts
    inner join {{ model }} as model using (prompt_id)
    where prompts.form_id is not null and model.completion is not null
),

forms as materialized (
    select
        form.regex,
        form.json_schema,
        automaton.*
    from (select distinct regex, json_schema from answers) as form
    cross join lateral {{ dbt_nn.db_function('regex_automaton') }}(
        {{ dbt_nn.db_function('form_regex') }}(form.regex, form.json_schema)
    ) as automaton
)

select
    answers.prompt_id,
    coalesce(answers.regex, answers.json_schema) as form,
    answers.completion,
    problem.problem
from answers
inner join forms
    on forms.regex is not distinct from answers.regex
    and forms.json_schema is not distinct from answers.json_schema
cross join lateral (
    values
    (
        'is not of its form',
        not coalesce(
            forms.is_accepting[{{ dbt_nn.db_function('automaton_state') }}(
                forms.alphabet,
                forms.symbols,
                forms.transitions,
                convert_to(answers.completion, 'UTF8')
            )],
            false
        )
    ),
    (
        'is no JSON',
        answers.json_schema is not null and answers.completion is not json
    )
) as problem (problem, is_there)
where problem.is_there
order by answers.prompt_id
{% endtest %}
