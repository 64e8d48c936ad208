{#-
    Columns of a SELECT: the fields of answers that fulfil a JSON schema.

    json_schema   a dict, or JSON as a text; its type is object
    column        the answer, an expression of a text
    -> for each property a column of its name and type; NULL where the answer lacks it,
       is NULL or, since it was cut by hand, no JSON object
-#}
{% macro answer_fields(json_schema, column='completion') -%}
    {%- set schema = fromjson(json_schema, none) if json_schema is string else json_schema -%}
    {%- if schema is not mapping or schema.get('properties') is not mapping -%}
        {{ exceptions.raise_compiler_error(
            'answer_fields: ' ~ tojson(json_schema) ~ ' is no JSON schema of an object: '
            ~ 'give one with properties, a dict or a text'
        ) }}
    {%- endif -%}
    {%- for name, field in schema.properties.items() %}
    case
        when {{ column }} is json object
            then {{ dbt_nn.json_field(column, name, dbt_nn.field_type(field, schema)) }}
    end as {{ adapter.quote(name) }}{{ ',' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}


{#- A field of a JSON object as a type: an expression. -#}
{% macro json_field(column, name, type) -%}
    {%- if type == 'jsonb' -%}
        nullif({{ column }}::jsonb -> {{ dbt_nn.literal(name) }}, 'null')
    {%- else -%}
        ({{ column }}::jsonb ->> {{ dbt_nn.literal(name) }})::{{ type }}
    {%- endif -%}
{%- endmacro %}


{#- The type of a field's column: of alternatives the one beside null. -#}
{% macro field_type(field, schema) -%}
    {%- set field = field if field is mapping else {} -%}
    {%- if field.get('$ref') -%}
        {%- set parts = field['$ref'].split('/') -%}
        {%- set found = schema.get(parts[1], {}).get(parts[-1], {}) if parts | length == 3 else {} -%}
        {{ return(dbt_nn.field_type(found, schema) if '$ref' not in found else 'jsonb') }}
    {%- endif -%}
    {%- set kinds = [] -%}
    {%- for option in field.get('anyOf') or field.get('oneOf') or [] -%}
        {%- if option != {'type': 'null'} -%}
            {%- do kinds.append(dbt_nn.field_type(option, schema)) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set values = field.get('enum') or ([field['const']] if 'const' in field else []) -%}
    {%- for value in values if value is not none -%}
        {%- do kinds.append(
            'text' if value is string else 'boolean' if value is boolean
            else 'bigint' if value is integer else 'numeric' if value is number else 'jsonb'
        ) -%}
    {%- endfor -%}
    {%- if not kinds -%}
        {%- set types = field.get('type', []) -%}
        {%- set types = [types] if types is string else types -%}
        {%- for type in types -%}
            {%- if type == 'string' -%}
                {%- do kinds.append({
                    'date': 'date', 'time': 'timetz', 'date-time': 'timestamptz', 'uuid': 'uuid',
                }.get(field.get('format'), 'text')) -%}
            {%- elif type != 'null' -%}
                {%- do kinds.append({
                    'integer': 'bigint', 'number': 'numeric', 'boolean': 'boolean',
                }.get(type, 'jsonb')) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(kinds[0] if kinds | unique | list | length == 1 else 'jsonb') }}
{%- endmacro %}
