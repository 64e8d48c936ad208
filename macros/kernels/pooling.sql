{#-
    One vector for each text: the mean of its tokens' activations, or one of them.

    input   [places, n]      relation of a layer: (sequence_id, position, activation)
    mode    scalar SQL expression, the name of a pooling in sentence-transformers:
            mean        of all tokens, special ones among them
            cls         the first token's
            lasttoken   the last token's
            max         the largest of each channel
    -> [sequences, n]

    Behaves as sentence-transformers' Pooling. An engine has no other form of it.
-#}
{% macro pooling(input, mode) -%}
select
    x.sequence_id,
    case
        when pooled.mode = 'max' then (
            select {{ dbt_nn.vector_of('channel.largest', by='channel.i') }}
            from (
                select
                    element.i,
                    max(element.value) as largest
                from {{ input }} as token
                cross join {{ dbt_nn.elements_of('token.activation', 'element') }}
                where token.sequence_id = x.sequence_id
                group by element.i
            ) as channel
        )
        else avg(x.activation) filter (
            where pooled.mode = 'mean'
                or pooled.mode = 'cls' and x.position = 0
                or pooled.mode = 'lasttoken' and x.position = text.last
        )
    end as activation
from {{ input }} as x
inner join (
    select
        token.sequence_id,
        max(token.position) as last
    from {{ input }} as token
    group by token.sequence_id
) as text
    on x.sequence_id = text.sequence_id
cross join (select {{ mode }} as mode) as pooled
group by x.sequence_id, pooled.mode
{%- endmacro %}
