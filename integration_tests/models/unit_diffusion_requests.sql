{{ dbt_nn.diffusion_requests(
    ref('unit_image_options'),
    var('unit_options', {}),
    ref('unit_scheduler'),
    ref('unit_config'),
    'pg_catalog',
) }}
