{{ ddpm_requests(
    none,
    var('unit_options', {}),
    ref('unit_scheduler'),
    'pg_catalog',
) }}
