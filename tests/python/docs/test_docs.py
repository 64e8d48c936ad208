"""The documentation site: everything is described, and a browser shows it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from PIL import Image
from psycopg2 import sql

from conftest import Dbt
from dbt_nn.database import PROJECT
from runs import TWIN, UNET_TWIN, load_checkpoint
from tools.browser import Browser, BrowserError, find_browser, open_browser
from tools.lineage import ARROWS, KEY, PICTURE, VIEWS, View, open_lineage

pytestmark = pytest.mark.long

SCHEMA = "test_docs"
LAYERS = ("gpt2_h_0_mlp_c_fc", "ddpm_down_blocks_0_resnets_0_conv1")


@pytest.fixture(scope="module")
def browser(isolated_environment: Path) -> Iterator[Browser]:
    try:
        find_browser()
    except BrowserError as error:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    with open_browser(isolated_environment / "browser") as opened:
        yield opened


# --- The site -----------------------------------------------------------------


@dataclass
class Site:
    """What `dbt docs generate --static` wrote."""

    target: Path
    output: str

    @property
    def address(self) -> str:
        return (self.target / "static_index.html").as_uri()

    def read(self, name: str) -> dict[str, Any]:
        return json.loads((self.target / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    isolated_environment: Path,
) -> Iterator[Site]:
    """The site, with both checkpoints loaded and some layers built."""
    load_checkpoint(TWIN, "gpt2_twin")
    load_checkpoint(UNET_TWIN, "ddpm_twin")
    target = isolated_environment / "docs"
    env = {"DBT_NN_SCHEMA": SCHEMA, "DBT_TARGET_PATH": str(target)}
    dbt(
        "build",
        "--select",
        *(f"+{layer}" for layer in LAYERS),
        "--exclude-resource-type",
        "test",
        "unit_test",
        env=env,
    )
    done = dbt("docs", "generate", "--static", env=env)
    yield Site(target, done.stdout)
    cursor = connection.cursor()
    cursor.execute(
        "select nspname from pg_namespace where nspname ~ %s", [f"^{SCHEMA}(_|$)"]
    )
    for (schema,) in cursor.fetchall():
        cursor.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))


@pytest.fixture(scope="module")
def manifest(site: Site) -> dict[str, Any]:
    return site.read("manifest.json")


def plain(text: str) -> str:
    """Text without Markdown's marks and line breaks, to compare."""
    return re.sub(r"[\s`*|#]+", " ", text).strip()


def is_drawn(name: str) -> bool:
    """Whether the lineage graph shows a node, if its docs are not switched off."""
    return name.startswith(("model.", "seed.", "source."))


def is_session(node: dict[str, Any]) -> bool:
    """One more session that makes steps: not a part of the network."""
    return node.get("config", {}).get("materialized") == "session"


def models_of(manifest: dict[str, Any], network: str) -> set[str]:
    """What the map of a network shows."""
    return {
        name
        for name, node in manifest["nodes"].items()
        if name.startswith(f"model.dbt_nn.{network}_") and not is_session(node)
    }


# --- Tests --------------------------------------------------------------------


def test_errors_are_found(browser: Browser, tmp_path: Path) -> None:
    """Of a page that has some."""
    page = tmp_path / "page.html"
    page.write_text(
        "<script>console.error('first'); throw new Error('second')</script>"
        "<img src='http://127.0.0.1:9/third'><img src='fourth'>",
        encoding="utf-8",
    )
    browser.open(page.as_uri())
    found = "\n".join(browser.errors())
    for error in ("first", "second", "http://127.0.0.1:9/third", "/fourth"):
        assert error in found


def test_no_warnings(site: Site) -> None:
    assert not re.search("WARN|deprecat", site.output), site.output


def test_everything_is_described(manifest: dict[str, Any]) -> None:
    """Models, tensors, macros, generic tests, and each column that YAML lists."""
    missing = set()

    def look(what: str, described: dict[str, Any], key: str = "description") -> None:
        if not (described[key] or "").strip():
            missing.add(f"{what}: {key}")

    for name, node in [*manifest["nodes"].items(), *manifest["sources"].items()]:
        if node["package_name"] == "dbt_nn" and is_drawn(name):
            what = f"{name} ({node['original_file_path']})"
            look(what, node)
            for column in node["columns"].values():
                look(f"{what}, column {column['name']}", column)
            if node["resource_type"] == "source":
                look(f"source {node['source_name']}", node, "source_description")

    for macro in manifest["macros"].values():
        # An underscore is private; the macro that dispatches has the description
        # of what is an adapter's.
        private = re.match("_|(postgres|default)__", macro["name"])
        if macro["package_name"] == "dbt_nn" and not private:
            what = f"macro {macro['name']} ({macro['original_file_path']})"
            look(what, macro)
            for argument in macro["arguments"]:
                # dbt takes a word of a materialization's head for an argument
                if argument["name"] != "supported_languages":
                    look(f"{what}, argument {argument['name']}", argument)
                    look(f"{what}, argument {argument['name']}", argument, "type")
    assert not missing, "\n".join(["not described:", *sorted(missing)])


def test_columns_are_described(site: Site, manifest: dict[str, Any]) -> None:
    """Of models and tensors; of what is built, those that the catalog lists."""
    described = {
        name: {column["name"]: column["data_type"] for column in columns.values()}
        for name, node in {**manifest["nodes"], **manifest["sources"]}.items()
        if is_drawn(name) and not is_session(node)
        for columns in [node["columns"]]
    }
    assert [name for name, columns in described.items() if not columns] == []
    catalog = site.read("catalog.json")
    catalog = catalog["nodes"] | catalog["sources"]
    built = {name for name in catalog if name in described}
    assert {f"model.dbt_nn.{layer}" for layer in LAYERS} < built
    for name in built:
        columns = catalog[name]["columns"].values()
        assert described[name] == {
            # a prompt_id is of the type of the user's own
            column["name"]: column["type"]
            if described[name].get(column["name"])
            else None
            for column in columns
        }, name


def test_overview(
    site: Site, manifest: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    """The first page is models/overview.md; behind it is the whole lineage."""
    browser.open(site.address)
    browser.wait_for("document.querySelector('.app-content h1')")
    (tmp_path / "overview.png").write_bytes(browser.screenshot())
    text = (PROJECT / "models" / "overview.md").read_text(encoding="utf-8")
    headings = re.findall("^#+ .*", text, re.MULTILINE)
    assert headings
    for heading in headings:
        assert plain(heading) in plain(browser.text)
    named = set(re.findall(r"`(?:\d?\+)?((?:gpt2|ddpm|dbt_nn)_\w+)`", text))
    assert named
    assert named <= {
        name.split(".")[-1] for name in {**manifest["nodes"], **manifest["macros"]}
    }

    loaded = "[...document.images].map(image => image.naturalWidth > 0)"
    browser.wait_for(f"{loaded}.length >= 2 && {loaded}.every(Boolean)")

    # It is in the page, though to draw all at once takes a browser minutes.
    browser.wait_for("window.graph && graph.nodes().length")
    arrows = {tuple(arrow) for arrow in browser.evaluate(ARROWS)}
    for network in ("gpt2", "ddpm"):
        expected = {
            (parent, name)
            for name in models_of(manifest, network)
            for parent in manifest["parent_map"][name]
        }
        assert len(expected) > 200
        assert expected <= arrows, sorted(expected - arrows)[:5]
    assert browser.errors() == []


# Boxes whose text does not fit, and those that lie on another one.
CROWDED = """(() => {
    const boxes = [...document.querySelectorAll("a.box")].map(link => ({
        text: link.querySelector("text").getBBox(),
        place: link.querySelector("rect").getBBox(),
        name: link.querySelector("title").textContent,
    }));
    return boxes.filter((box, i) => box.text.width > box.place.width - 2
        || boxes.slice(i + 1).some(({place}) =>
            place.x < box.place.x + box.place.width - 1
            && box.place.x < place.x + place.width - 1
            && place.y < box.place.y + box.place.height
            && box.place.y < place.y + place.height)
    ).map(box => box.name);
})()"""


@pytest.mark.parametrize("network", ["gpt2", "ddpm"])
def test_map(
    site: Site, manifest: dict[str, Any], browser: Browser, network: str
) -> None:
    """A box for each model, which leads to its page; blocks lead to their lineage."""
    browser.open((site.target / "assets" / f"{network}.svg").as_uri())
    assert browser.evaluate(CROWDED) == []
    links = browser.evaluate(
        "[...document.querySelectorAll('a')].map(link => link.getAttribute('href'))"
    )
    start = "../static_index.html#!/"
    assert all(address.startswith(start) for address in links)
    boxes = [a.split("/")[-1] for a in links if a.startswith(f"{start}model/")]
    assert sorted(boxes) == sorted(models_of(manifest, network))

    browser.evaluate(
        "document.querySelectorAll('a.box')[9]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    name = boxes[9].split(".")[-1]
    browser.wait_for(
        f"document.querySelector('.app-content h1')?.innerText.includes('{name}')"
    )

    block = {"gpt2": "block_3", "ddpm": "mid_block"}[network]
    [address] = [a for a in links if a.endswith(f"tag%3A{block}")]
    browser.open(site.address + "#" + address.split("#")[1])
    browser.wait_for("window.graph && graph.nodes(':visible').length")
    assert sorted(
        browser.evaluate("graph.nodes(':visible').map(n => n.id())")
    ) == sorted(
        name
        for name, node in manifest["nodes"].items()
        if block in node["tags"] and name.startswith(f"model.dbt_nn.{network}_")
    )
    assert browser.errors() == []


@pytest.mark.parametrize("layer", LAYERS)
def test_page_of_a_layer(
    site: Site,
    manifest: dict[str, Any],
    browser: Browser,
    tmp_path: Path,
    layer: str,
) -> None:
    """Description, columns, code, and its neighbours behind the round button."""
    name = f"model.dbt_nn.{layer}"
    node = manifest["nodes"][name]
    browser.open(f"{site.address}#!/model/{name}")
    browser.wait_for(
        f"document.querySelector('.app-content h1')?.innerText.includes('{layer}')"
    )
    (tmp_path / "page.png").write_bytes(browser.screenshot())
    assert plain(node["description"]) in plain(browser.text)

    rows = browser.evaluate(
        "[...document.querySelectorAll('.app-content table tr')]"
        ".map(row => [...row.cells].slice(0, 3).map(cell => cell.innerText.trim()))"
    )
    columns = site.read("catalog.json")["nodes"][name]["columns"].values()
    assert "activation" in [column["name"] for column in columns]
    for column in columns:
        about = node["columns"][column["name"]]["description"]
        assert about
        assert [column["name"], column["type"], about] in rows

    assert plain(node["raw_code"]) in plain(browser.text)
    browser.evaluate(
        "[...document.querySelectorAll('.app-content a')]"
        ".find(link => link.innerText === 'Compiled').click()"
    )
    assert plain(node["compiled_code"]) in plain(browser.text)

    browser.click("[title='View Lineage Graph']")
    neighbours = manifest["parent_map"][name] + manifest["child_map"][name]
    expected = sorted({name, *filter(is_drawn, neighbours)})
    drawn = "graph.nodes(':visible').map(node => node.id()).sort()"
    browser.wait_for(f"window.graph && {drawn}.length < 20")
    (tmp_path / "graph.png").write_bytes(browser.screenshot())
    assert browser.evaluate(drawn) == expected
    assert browser.errors() == []


def test_lineage(
    site: Site, manifest: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    """The graph by its address, with layers of both networks and what they read."""
    view = View(" ".join(f"1+{layer}" for layer in LAYERS))
    arrows = open_lineage(browser, site.address, view)
    (tmp_path / "lineage.png").write_bytes(browser.screenshot())
    names = [f"model.dbt_nn.{layer}" for layer in LAYERS]
    assert sorted(arrows) == sorted(
        [parent, name] for name in names for parent in manifest["parent_map"][name]
    )
    assert browser.errors() == []


def test_picture_of_the_lineage(site: Site, browser: Browser) -> None:
    """docs/lineage.png has the arrows that the site draws now: run `make lineage`."""
    with Image.open(PICTURE) as picture:
        drawn = json.loads(picture.info[KEY])
    assert drawn == [open_lineage(browser, site.address, view) for view in VIEWS]
