{{ dbt_nn.diffusion_requests(
    none,
    var('unit_options', {}),
    ref('unit_scheduler'),
    ref('unit_config'),
    'pg_catalog',
) }}
