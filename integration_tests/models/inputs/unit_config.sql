-- A checkpoint's hyper-parameters.
select
    null::text as parameter,
    null::jsonb as value
