-- Numbers for a function, [n].
select
    null::text as name,
    null::float8[] as x
