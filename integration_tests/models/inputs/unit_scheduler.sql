-- A checkpoint's noise schedule, as in scheduler_config.json.
select
    null::text as parameter,
    null::jsonb as value
