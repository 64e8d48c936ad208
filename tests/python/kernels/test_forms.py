"""What a reader meets: short compiled layers, and few macros behind one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import Dbt
from dbt_nn.database import PROJECT

LAYERS = {
    "linear": "gpt2_h_0_mlp_c_fc",
    "attention": "gpt2_h_0_attn",
    "conv2d": "ddpm_down_blocks_0_resnets_0_conv1",
    "group_norm": "ddpm_down_blocks_0_resnets_0_norm1",
}
MOST_LINES = 60
MOST_MACROS = 15
ENGINES = PROJECT / "macros" / "engines"


def compiled(dbt: Dbt, target: Path, **variables: str) -> dict[str, str]:
    """What dbt compiles the layers to."""
    dbt(
        *("compile", "--no-introspect", "--no-populate-cache"),
        *("--select", *LAYERS.values(), "--exclude", "resource_type:test"),
        *("--vars", str(variables), "--target-path", str(target)),
    )
    files = {path.stem: path for path in target.glob("compiled/**/*.sql")}
    return {name: files[layer].read_text("utf-8") for name, layer in LAYERS.items()}


@pytest.fixture(scope="module")
def plain(dbt: Dbt, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return compiled(dbt, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("kernel", LAYERS)
def test_a_layer_is_short(plain: dict[str, str], kernel: str) -> None:
    """Its plain form, all of it in one view, is what dbt compiles."""
    assert len(plain[kernel].strip().splitlines()) <= MOST_LINES


def test_the_form_that_runs_can_be_seen(
    dbt: Dbt, plain: dict[str, str], tmp_path: Path
) -> None:
    fast = compiled(dbt, tmp_path, compiled_kernels="fast")
    for kernel in LAYERS:
        assert fast[kernel] != plain[kernel], kernel


def macros() -> dict[str, tuple[Path, str]]:
    """Name -> file and text of each macro."""
    found = {}
    for path in (PROJECT / "macros").rglob("*.sql"):
        text = re.sub(r"\{#.*?#\}", "", path.read_text("utf-8"), flags=re.DOTALL)
        for name, body in re.findall(
            r"\{% macro (\w+)(.*?)\{%-? endmacro", text, re.DOTALL
        ):
            found[name] = (path, body)
    return found


def test_linear_takes_few_macros() -> None:
    """Those outside the engines, and what they call; a kernel with its plain form."""
    known = macros()
    met: set[str] = set()
    waiting = ["linear"]
    while waiting:
        name = waiting.pop()
        path, body = known[name]
        if name in met or ENGINES in path.parents:
            continue
        met.add(name)
        waiting += [n for n in re.findall(r"dbt_nn\.(\w+)", body) if n in known]
    assert "default__linear" in met
    assert "matmul" in met
    assert len(met) <= MOST_MACROS, sorted(met)
