"""Our macros: called outside dbt, or from the project of their unit tests."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import yaml

from conftest import Dbt
from dbt_nn.database import PROJECT


def load_macros(schema: str, *patterns: str) -> Any:
    """Load the macros of some files, as attributes that can be called.

    Args:
        schema: where the database functions are that they call.
        patterns: of the files, under macros/.

    """
    paths = [p for pattern in patterns for p in (PROJECT / "macros").glob(pattern)]
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(paths))
    package: dict[str, Any] = {"db_function": lambda name: f"{schema}.{name}"}
    environment = jinja2.Environment(extensions=["jinja2.ext.do"])
    environment.globals |= {
        "adapter": SimpleNamespace(quote=lambda name: f'"{name}"'),
        "dbt_nn": package,
        "target": {"schema": schema},
    }
    template = environment.from_string(source)
    context = template.new_context()
    deque(template.root_render_func(context), maxlen=0)  # defines them
    package |= context.vars  # a template's module lacks those named _like_this
    return SimpleNamespace(**context.vars)


def copy_unit_tests(dbt: Dbt, folder: Path) -> Path:
    """Copy the project of the unit tests, and of the package what they need.

    That is without the networks: dbt parses it in a fraction of the time.
    """
    ignored = shutil.ignore_patterns("dbt_packages", "target", "logs", "*-lock.yml")
    for name in ("macros", "seeds", "tests/generic", "integration_tests"):
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    shutil.copy(PROJECT / "dbt_project.yml", folder)
    project = folder / "integration_tests"
    path = project / "dbt_project.yml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["models"]["dbt_nn"]  # the networks
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    dbt("deps", "--project-dir", str(project))
    return project


def create_functions(dbt: Dbt, schema: str, folder: Path) -> None:
    """Create the database functions that macros call, as each unit test does."""
    project = copy_unit_tests(dbt, folder)
    dbt(
        "test",
        "--select",
        "unit_softmax",
        "--project-dir",
        str(project),
        env={"DBT_NN_SCHEMA": schema, "DBT_TARGET_PATH": str(project / "target")},
    )
