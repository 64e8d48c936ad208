"""The project's YAML against the JSON schemas that come with dbt.

dbt reads unknown keys in silence where the adapter is PostgreSQL's: it checks
its schemas for four other warehouses only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dbt.adapters.postgres import PostgresCredentials
from dbt.config.renderer import ProfileRenderer
from dbt.jsonschemas.jsonschemas import project_schema, resources_schema
from dbt_common.clients.jinja import get_environment
from dbt_common.context import set_invocation_context
from jinja2 import nodes
from jsonschema import ValidationError
from jsonschema.validators import Draft7Validator, extend

from dbt_nn.database import PROJECT

Schema = dict[str, Any]

UNIT_TESTS = PROJECT / "integration_tests"
ROOTS = (PROJECT, UNIT_TESTS, *(PROJECT / "examples").glob("*/"))
FOLDERS = ("analyses", "macros", "models", "seeds", "snapshots", "tests")


def resource_files() -> list[Path]:
    return sorted(
        path
        for root in ROOTS
        for folder in FOLDERS
        for pattern in ("*.yml", "*.yaml")
        for path in (root / folder).rglob(pattern)
    )


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def own_materializations() -> list[str]:
    return [
        name
        for path in (PROJECT / "macros").rglob("*.sql")
        for name in re.findall(
            r"{%-?\s*materialization\s+(\w+)", path.read_text(encoding="utf-8")
        )
    ]


def with_exceptions(schema: Schema) -> Schema:
    """Add to dbt's schema what dbt accepts and its schema does not."""
    schema = deepcopy(schema)
    # The schema lists the materializations that come with dbt and its adapters;
    # dbt takes every one that a macro defines.
    schema["definitions"]["DbtMaterialization"]["oneOf"].append(
        {"enum": own_materializations()}
    )
    return schema


def jinja_or_type(
    validator: Any, types: Any, instance: Any, schema: Schema
) -> Iterator[ValidationError]:
    """The keyword `type`, which leaves out what dbt has yet to render."""
    if not (isinstance(instance, str) and "{{" in instance):
        yield from Draft7Validator.VALIDATORS["type"](
            validator, types, instance, schema
        )


Validator = extend(Draft7Validator, {"type": jinja_or_type})


@cache
def validator(kind: str) -> Any:
    schema = project_schema() if kind == "project" else resources_schema()
    return Validator(with_exceptions(schema))


def causes(error: ValidationError) -> list[ValidationError]:
    """The errors behind "is not valid under any of the given schemas".

    The alternative that was meant is the one that fits furthest down.
    """
    branches: dict[Any, list[ValidationError]] = {}
    for cause in error.context or []:
        if cause.validator_value == "null":  # may be left empty: never meant
            continue
        branches.setdefault(cause.schema_path[0], []).extend(causes(cause))
    if not branches:
        return [error]
    depths = {
        branch: max(len(cause.absolute_path) for cause in found)
        for branch, found in branches.items()
    }
    deepest = max(depths.values())
    if deepest == len(error.absolute_path) and error.validator == "oneOf":
        return [error]
    return [
        cause
        for branch, found in branches.items()
        if depths[branch] == deepest
        for cause in found
    ]


def problems(validator: Any, content: Any) -> list[str]:
    found = []
    for error in validator.iter_errors(content):
        for cause in causes(error):
            place, names = content, []
            for part in cause.absolute_path:
                place = place[part]
                named = isinstance(place, dict) and isinstance(part, int)
                names.append(str(place.get("name", part) if named else part))
            found.append(f"{'.'.join(names) or 'top'}: {cause.message[:400]}")
    return found


def read(path: Path) -> Any:
    # CSafeLoader is the same in C; a wheel of PyYAML may lack it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def check(path: Path, kind: str) -> None:
    found = problems(validator(kind), read(path))
    assert not found, "\n".join([f"{name_of(path)} against dbt's schema:", *found])


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_project_file(root: Path) -> None:
    check(root / "dbt_project.yml", "project")


@pytest.mark.parametrize("path", resource_files(), ids=name_of)
def test_resource_file(path: Path) -> None:
    check(path, "resources")


def macro_files() -> list[Path]:
    """Files of macros and of what calls them from another project."""
    folders = ("macros", "tests/generic", "integration_tests/models")
    return [path for folder in folders for path in (PROJECT / folder).rglob("*.sql")]


def calls(path: Path, names: set[str]) -> list[str]:
    """Names of macros that are called without their package."""
    tree = get_environment().parse(path.read_text(encoding="utf-8"))
    called = [node.node for node in tree.find_all(nodes.Call)]
    return [x.name for x in called if isinstance(x, nodes.Name) and x.name in names]


def test_macros_name_their_package() -> None:
    """Else a model of another project, which calls one of them, lacks the others."""
    texts = [path.read_text(encoding="utf-8") for path in macro_files()]
    names = {x for text in texts for x in re.findall(r"{%-?\s*macro\s+(\w+)", text)}
    found = [f"{name_of(p)}: {x}()" for p in macro_files() for x in calls(p, names)]
    assert not found, "\n".join(["write dbt_nn. before the name:", *found])


def test_profile() -> None:
    """The example has only what dbt-postgres knows, rendered as dbt does it."""
    schema = PostgresCredentials.json_schema()
    schema["properties"] |= {"type": {"const": "postgres"}, "threads": {"minimum": 1}}
    schema["additionalProperties"] = False
    set_invocation_context({})  # without environment variables
    profiles = ProfileRenderer({}).render_data(read(PROJECT / "profiles.example.yml"))
    assert list(profiles) == ["dbt_nn"]
    assert list(profiles["dbt_nn"]) == ["target", "outputs"]
    outputs = profiles["dbt_nn"]["outputs"]
    assert profiles["dbt_nn"]["target"] in outputs
    for name, output in outputs.items():
        found = problems(
            Draft7Validator(schema), PostgresCredentials.translate_aliases(output)
        )
        assert not found, f"output {name}: {found}"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"models": [{"name": "a", "descripton": "b"}]}, "models.a"),
        ({"models": [{"name": "a", "config": {"materialised": "x"}}]}, "models.a.conf"),
        ({"models": [{"name": "a", "config": {"materialized": "layr"}}]}, "models.a.c"),
        ({"macros": [{"name": "a", "arguments": [{"nam": "b"}]}]}, "macros.a.arg"),
        ({"sources": [{"name": "a", "table": []}]}, "sources.a"),
        ({"unit_test": []}, "top"),
    ],
)
def test_mistakes_are_found(content: Any, place: str) -> None:
    found = problems(validator("resources"), content)
    assert found
    assert all(problem.startswith(place) for problem in found), found
