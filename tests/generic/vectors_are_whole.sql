{#-
    A row of results has a vector or an error, and never both; and none is without
    direction.

    column   of vectors

    Fails with a row for each such: (relation, key, chunk, problem).
-#}
{% test vectors_are_whole(model, column) %}
{{ config(enabled=dbt_nn.is_tested()) }}
with problems as (
    select
        key,
        chunk,
        case
            when {{ column }} is null and error is null then 'has no vector and no error'
            when {{ column }} is not null and error is not null
                then 'has a vector and an error'
            when vector_norm({{ column }}) = 0 then 'has a vector of zeros'
        end as problem
    from {{ model }}
)

select
    '{{ model.identifier }}' as relation,
    key,
    chunk,
    problem
from problems
where problem is not null
order by key, chunk
{% endtest %}
