"""The documentation site: everything is described, and a browser shows it.

The browser is driven by the DevTools protocol, over two named pipes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import psycopg2
import pytest
from psycopg2 import sql

from conftest import Dbt
from database import PROJECT
from gpt2_runs import TWIN, load_checkpoint
from unet_runs import UNET_TWIN

pytestmark = pytest.mark.slow

SCHEMA = "test_docs"
LAYERS = ("gpt2_h_0_mlp_c_fc", "ddpm_down_blocks_0_resnets_0_conv1")

# `chromium` on Debian; what others call it, for who runs the tests elsewhere.
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root with one; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is too small
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1340,700",
    "--remote-debugging-pipe",
)

ARROWS = "graph.edges().map(edge => [edge.source().id(), edge.target().id()])"

# Errors of every dbt docs site, from its own page and not from what it shows.
KNOWN_ERRORS = (
    # the browser loads the icons' addresses before Angular has filled them in
    re.compile(r"/%7B%7B%20getIcon\(item\.type,%20'o(n|ff)'\)%20%7D%7D"),
    # an address that the build of the site left as it was
    re.compile(r"/\$%7Brequire\('\./assets/favicons/favicon\.ico'\)%7D"),
)


# --- The browser --------------------------------------------------------------


@dataclass
class Browser:
    """A page of a headless browser, and what it complained about."""

    requests: int  # file descriptors
    answers: int
    log: Path
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _buffer: bytes = field(default=b"", repr=False)
    _last_id: int = 0

    def attach(self) -> None:
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)[
            "sessionId"
        ]
        for domain in ("Log", "Network", "Page", "Runtime"):
            self.call(f"{domain}.enable")

    def _fail(self, message: str) -> NoReturn:
        log = self.log.read_text(encoding="utf-8", errors="replace")
        pytest.fail(f"{message}\n{log[-3000:]}", pytrace=False)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            wait = deadline - time.monotonic()
            if wait < 0 or not select.select([self.answers], [], [], wait)[0]:
                self._fail("the browser does not answer")
            received = os.read(self.answers, 1 << 20)
            if not received:
                self._fail("the browser has ended")
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", maxsplit=1)
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        try:
            os.write(self.requests, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            self._fail("the browser has ended")
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, (expression, done)
        return done["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 40) -> None:
        """Wait until JavaScript is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                errors = "\n".join(self.errors())
                pytest.fail(f"not after {seconds} s: {condition}\n{errors}")
            time.sleep(0.1)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.wait_for("location.href === 'about:blank'")
        self.events.clear()
        done = self.call("Page.navigate", url=address)
        assert "errorText" not in done, done
        self.wait_for("document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    @property
    def text(self) -> str:
        """What the page shows beside its menu."""
        return self.evaluate("document.querySelector('.app-content').innerText")

    def errors(self) -> list[str]:
        """List errors in the console, and addresses outside of the page."""
        found = []
        for event in self.events:
            about = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    details = about["exceptionDetails"]
                    thrown = details.get("exception", {})
                    found.append(thrown.get("description", details["text"]))
                case "Runtime.consoleAPICalled" if about["type"] in ("error", "assert"):
                    found.append(f"console: {about['args']}"[:500])
                case "Log.entryAdded" if about["entry"]["level"] == "error":
                    entry = about["entry"]
                    found.append(f"{entry['text'].strip()} ({entry.get('url')})")
                case "Network.requestWillBeSent":
                    url = about["request"]["url"]
                    if not url.startswith(("file:", "data:")):
                        found.append(f"the page asks for {url}")
        return [
            error
            for error in found
            if not any(known.search(error) for known in KNOWN_ERRORS)
        ]

    def screenshot(self, path: Path) -> None:
        taken = self.call("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(taken))


def find_browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    missing = "no chromium or Chrome is installed (Debian: apt-get install chromium)"
    if os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def browser(isolated_environment: Path) -> Iterator[Browser]:
    program = find_browser()
    folder = isolated_environment / "browser"
    folder.mkdir()
    requests, answers, log = folder / "requests", folder / "answers", folder / "log"
    os.mkfifo(requests)
    os.mkfifo(answers)
    with log.open("wb") as output:
        process = subprocess.Popen(
            # it reads file descriptor 3 and writes to 4
            ["sh", "-c", 'exec "$@" 3<requests 4>answers', "sh", program, *OPTIONS]
            + [f"--user-data-dir={folder / 'profile'}"],
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with requests.open("wb", buffering=0) as out, answers.open("rb") as into:
            opened = Browser(out.fileno(), into.fileno(), log)
            opened.attach()
            yield opened
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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


def test_overview(
    site: Site, manifest: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    """The first page is models/overview.md; behind it is the whole lineage."""
    browser.open(site.address)
    browser.wait_for("document.querySelector('.app-content h1')")
    browser.screenshot(tmp_path / "overview.png")
    text = (PROJECT / "models" / "overview.md").read_text(encoding="utf-8")
    headings = re.findall("^#+ .*", text, re.MULTILINE)
    assert headings
    for heading in headings:
        assert plain(heading) in plain(browser.text)

    # It is in the page, though to draw all at once takes a browser minutes.
    browser.wait_for("window.graph && graph.nodes().length")
    arrows = {tuple(arrow) for arrow in browser.evaluate(ARROWS)}
    for network in ("gpt2", "ddpm"):
        expected = {
            (parent, name)
            for name in manifest["nodes"]
            if name.startswith(f"model.dbt_nn.{network}_")
            for parent in manifest["parent_map"][name]
        }
        assert len(expected) > 200
        assert expected <= arrows, sorted(expected - arrows)[:5]
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
    browser.screenshot(tmp_path / "page.png")
    assert plain(node["description"]) in plain(browser.text)

    rows = browser.evaluate(
        "[...document.querySelectorAll('.app-content table tr')]"
        ".map(row => [...row.cells].slice(0, 2).map(cell => cell.innerText.trim()))"
    )
    columns = site.read("catalog.json")["nodes"][name]["columns"].values()
    assert "activation" in [column["name"] for column in columns]
    for column in columns:
        assert [column["name"], column["type"]] in rows

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
    browser.screenshot(tmp_path / "graph.png")
    assert browser.evaluate(drawn) == expected
    assert browser.errors() == []


def test_lineage(
    site: Site, manifest: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    """The graph by its address, with layers of both networks and what they read."""
    select = " ".join(f"1+{layer}" for layer in LAYERS)
    browser.open(f"{site.address}#!/overview?g_v=1&g_i={quote(select)}")
    browser.wait_for("window.graph && graph.nodes(':visible').length")
    browser.screenshot(tmp_path / "lineage.png")
    arrows = browser.evaluate(ARROWS.replace("()", "(':visible')", 1))
    names = [f"model.dbt_nn.{layer}" for layer in LAYERS]
    assert sorted(arrows) == sorted(
        [parent, name] for name in names for parent in manifest["parent_map"][name]
    )
    assert browser.errors() == []
