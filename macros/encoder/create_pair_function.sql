{#-
    DDL of `room_for_pair(first, second, room)`: how many tokens of each text of a pair
    stay, where both have `room`. The longer one is cut first, as the truncation
    `longest_first` of the library tokenizers does.
-#}
{% macro create_pair_function() -%}
    create or replace function {{ dbt_nn.db_function('room_for_pair') }} (
        n_first integer, n_second integer, room integer, out first integer, out second integer
    ) language sql immutable strict parallel safe as $body$
        select
            case when n_first > n_second then longer else shorter end,
            case when n_first > n_second then shorter else longer end
        from (
            select
                case when n_first + n_second <= room then least(n_first, n_second)
                    when least(n_first, n_second) + cut > room then room / 2
                    else least(n_first, n_second)
                end as shorter,
                case when n_first + n_second <= room then greatest(n_first, n_second)
                    when least(n_first, n_second) + cut > room then room / 2 + room % 2
                    else cut
                end as longer
            from (
                select case
                    when least(n_first, n_second) > room then least(n_first, n_second)
                    else greatest(least(n_first, n_second), room - least(n_first, n_second))
                end as cut
            ) as longest
        ) as kept
    $body$;
{%- endmacro %}
