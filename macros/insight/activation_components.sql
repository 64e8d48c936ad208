{#-
    What layers see, as pictures: the first three principal components of a layer's
    activations over the places of an image.

    layers       their relations, [image, h, w, n] of at most 16,000 places an image
    options      see image_insight_options()
    iterations   of the power iteration
    -> (layer_name, image_id, component 1, 2 or 3, y, x, value, explained: the component's
       share of the variance); fewer components where there are fewer channels

    The covariance of two channels is the inner product of both as vectors over the
    places. A power iteration finds its first three eigenvectors, each without its share
    of those before.

    Pearson 1901. Behaves as torch.pca_lowrank, each component with its largest weight
    above 0.
-#}
{% macro activation_components(layers, options, iterations=400) -%}
with recursive places as (
    {{ dbt_nn.places_of_layers(layers, options) | indent(4) }}
),

centred as materialized (
    select
        places.layer_name,
        places.image_id,
        places.y,
        places.x,
        places.activation - means.activation as activation
    from places
    inner join (
        select
            layer_name,
            image_id,
            avg(activation) as activation
        from places
        group by layer_name, image_id
    ) as means using (layer_name, image_id)
),

channels as materialized (
    select
        centred.layer_name,
        centred.image_id,
        element.i,
        {{ dbt_nn.vector_of('element.value', by='centred.y, centred.x') }} as places
    from centred
    cross join {{ dbt_nn.elements_of('centred.activation', 'element') }}
    group by centred.layer_name, centred.image_id, element.i
),

products as (
    select
        a.layer_name,
        a.image_id,
        a.i,
        {{ dbt_nn.vector_of(dbt_nn.dot('a.places', 'b.places'), by='b.i') }} as of_channels,
        {{ dbt_nn.dot('a.places', 'a.places') }} as variance
    from channels as a
    inner join channels as b using (layer_name, image_id)
    group by a.layer_name, a.image_id, a.i, a.places
),

covariances as materialized (
    select
        layer_name,
        image_id,
        array_agg(of_channels order by i) as rows,
        sum(variance) as variance
    from products
    group by layer_name, image_id
),

iterations (layer_name, image_id, n, first, second, third) as (
    select
        layer_name,
        image_id,
        0,
        {%- for component in (1, 2, 3) %}
        l2_normalize((
            select {{ dbt_nn.vector_of('sin(' ~ component ~ ' * i * i)', by='i') }}
            from generate_subscripts(rows, 1) as i
        )){{ ',' if not loop.last }}
        {%- endfor %}
    from covariances
    union all
    select
        earlier.layer_name,
        earlier.image_id,
        earlier.n + 1,
        a.first,
        b.second,
        c.third
    from iterations as earlier
    inner join covariances using (layer_name, image_id)
    cross join lateral (
        select
            {%- for component in ('first', 'second', 'third') %}
            {{ dbt_nn.vector_of(dbt_nn.dot('one.row', 'earlier.' ~ component), by='one.i') }} as {{ component }}{{ ',' if not loop.last }}
            {%- endfor %}
        from unnest(covariances.rows) with ordinality as one (row, i)
    ) as product
    cross join lateral (select l2_normalize(product.first) as first) as a
    cross join lateral (
        select l2_normalize({{ dbt_nn.orthogonal('product.second', ['a.first']) }}) as second
    ) as b
    cross join lateral (
        select l2_normalize({{ dbt_nn.orthogonal('product.third', ['a.first', 'b.second']) }}) as third
    ) as c
    where earlier.n < {{ iterations }}
),

components as (
    select
        iterations.layer_name,
        iterations.image_id,
        component.number,
        component.v,
        largest.direction,
        length.variance / nullif(covariances.variance, 0) as explained
    from iterations
    inner join covariances using (layer_name, image_id)
    cross join lateral (
        values (1, iterations.first), (2, iterations.second), (3, iterations.third)
    ) as component (number, v)
    cross join lateral (
        select sign(element.value) as direction
        from {{ dbt_nn.elements_of('component.v', 'element') }}
        order by abs(element.value) desc, element.i
        limit 1
    ) as largest
    cross join lateral (
        select sum({{ dbt_nn.dot('one.row', 'component.v') }} * element.value) as variance
        from unnest(covariances.rows) with ordinality as one (row, i)
        inner join {{ dbt_nn.elements_of('component.v', 'element') }} using (i)
    ) as length
    where iterations.n = {{ iterations }}
        and component.number <= vector_dims(component.v)
)

select
    centred.layer_name,
    centred.image_id,
    components.number as component,
    centred.y,
    centred.x,
    ({{ dbt_nn.dot('centred.activation', 'components.v') }} * components.direction)::real as value,
    components.explained::real as explained
from centred
inner join components using (layer_name, image_id)
{%- endmacro %}


{#-
    The rows of layers of images that are looked at, one below the other.

    layers    relations, [image, h, w, n]
    options   see image_insight_options()
    names     of the layers; by default the relations' own
    -> (layer_name, image_id, y, x, activation)
-#}
{% macro places_of_layers(layers, options, names=none) -%}
{%- for layer in layers %}
{{- 'union all\n' if not loop.first -}}
select
    '{{ names[loop.index0] if names else layer.identifier }}' as layer_name,
    image_id,
    y,
    x,
    activation
from {{ layer }}
where {{ dbt_nn.is_looked_at('image_id', options) }}
{% endfor %}
{%- endmacro %}


{#- A vector without its shares of others, which have the length 1 and are orthogonal. -#}
{% macro orthogonal(x, others) -%}
{{ x }}
{%- for other in others %}
- {{ other }} * {{ dbt_nn.broadcast(dbt_nn.dot(x, other), 'vector_dims(' ~ x ~ ')') }}
{%- endfor -%}
{%- endmacro %}
