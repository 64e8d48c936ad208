{#-
    What layers see, as pictures: the first three principal components of a layer's
    activations over the places of an image.

    layers    their relations, [image, h, w, n] of at most 16,000 places an image
    options   see image_insight_options()
    -> (layer_name, image_id, component 1, 2 or 3, y, x, value, explained: the component's
       share of the variance); fewer components where there are fewer channels

    Pearson 1901. Behaves as torch.pca_lowrank, each component with its largest weight
    above 0.
-#}
{% macro activation_components(layers, options) -%}
{%- for layer in layers %}
{{ 'union all' if not loop.first }}
select
    '{{ layer.identifier }}' as layer_name,
    found.*
from (
    {{ dbt_nn.principal_components(layer, options) | indent(4) }}
) as found
{%- endfor %}
{%- endmacro %}


{#-
    The same of one layer. The covariance of two channels is the inner product of both
    as vectors over the places. A power iteration finds its first three eigenvectors,
    each without its share of those before.
-#}
{% macro principal_components(layer, options, iterations=400) -%}
with recursive centred as (
    select
        places.image_id,
        places.y,
        places.x,
        places.activation - means.activation as activation
    from {{ layer }} as places
    inner join (
        select
            image_id,
            avg(activation) as activation
        from {{ layer }}
        group by image_id
    ) as means using (image_id)
    where {{ dbt_nn.is_looked_at('places.image_id', options) }}
),

channels as (
    select
        centred.image_id,
        element.i,
        {{ dbt_nn.vector_of('element.value', by='centred.y, centred.x') }} as places
    from centred
    cross join {{ dbt_nn.elements_of('centred.activation', 'element') }}
    group by centred.image_id, element.i
),

covariance as materialized (
    select
        a.image_id,
        a.i,
        {{ dbt_nn.vector_of(dbt_nn.dot('a.places', 'b.places'), by='b.i') }} as products
    from channels as a
    inner join channels as b using (image_id)
    group by a.image_id, a.i
),

iterations (image_id, n, first, second, third) as (
    select
        image_id,
        0,
        {%- for component in (1, 2, 3) %}
        l2_normalize({{ dbt_nn.vector_of('sin(' ~ component ~ ' * i * i)', by='i') }}){{ ',' if not loop.last }}
        {%- endfor %}
    from covariance
    group by image_id
    union all
    select
        earlier.image_id,
        earlier.n + 1,
        a.v,
        b.v,
        c.v
    from iterations as earlier
    cross join lateral (
        select
            {%- for component in ('first', 'second', 'third') %}
            {{ dbt_nn.vector_of(dbt_nn.dot('products', 'earlier.' ~ component), by='i') }} as {{ component }}{{ ',' if not loop.last }}
            {%- endfor %}
        from covariance
        where image_id = earlier.image_id
    ) as product
    cross join lateral (select l2_normalize(product.first) as v) as a
    cross join lateral (
        select l2_normalize({{ dbt_nn.orthogonal('product.second', ['a.v']) }}) as v
    ) as b
    cross join lateral (
        select l2_normalize({{ dbt_nn.orthogonal('product.third', ['a.v', 'b.v']) }}) as v
    ) as c
    where earlier.n < {{ iterations }}
),

components as (
    select
        iterations.image_id,
        component.number,
        component.v,
        (
            select sum({{ dbt_nn.dot('covariance.products', 'component.v') }} * element.value)
            from covariance
            inner join {{ dbt_nn.elements_of('component.v', 'element') }} on covariance.i = element.i
            where covariance.image_id = iterations.image_id
        ) as variance,
        (
            select sum(element.value)
            from covariance
            inner join {{ dbt_nn.elements_of('covariance.products', 'element') }} on covariance.i = element.i
            where covariance.image_id = iterations.image_id
        ) as total,
        (
            select sign(element.value)
            from {{ dbt_nn.elements_of('component.v', 'element') }}
            order by abs(element.value) desc, element.i
            limit 1
        ) as direction
    from iterations
    cross join lateral (
        values (1, iterations.first), (2, iterations.second), (3, iterations.third)
    ) as component (number, v)
    where iterations.n = {{ iterations }}
        and component.number <= vector_dims(component.v)
)

select
    centred.image_id,
    components.number as component,
    centred.y,
    centred.x,
    ({{ dbt_nn.dot('centred.activation', 'components.v') }} * components.direction)::real as value,
    (components.variance / nullif(components.total, 0))::real as explained
from centred
inner join components using (image_id)
{%- endmacro %}


{#- A vector without its shares of others, which have the length 1 and are orthogonal. -#}
{% macro orthogonal(x, others) -%}
{{ x }}
{%- for other in others %}
- {{ other }} * {{ dbt_nn.broadcast(dbt_nn.dot(x, other), 'vector_dims(' ~ x ~ ')') }}
{%- endfor -%}
{%- endmacro %}
