"""`dbt-nn look`: the terminal's table, and the pages in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from PIL import Image
from playwright.sync_api import Page, Playwright, ViewportSize, sync_playwright
from psycopg2.extras import RealDictCursor
from rich.console import Console
from transformers import AutoTokenizer

from conftest import run_script
from dbt_nn import look
from dbt_nn.database import connect
from dbt_nn.page import text
from dbt_nn.page.build import build, embedded_json
from runs import TWIN, UNET_TWIN, load_checkpoint
from tools.browser import BrowserError, find_browser

pytestmark = pytest.mark.long

SCHEMA = "test_look"
RELATIONS = f"{SCHEMA}_command_line"
COMPARED = (
    "logit_lens",
    "surprise",
    "attention_pattern",
    "logit_attribution",
    "source_attribution",
    "layer_norms",
)
# HTML, a script's end, an emoji, a text from right to left, a comment, jinja, SQL
HOSTILE = "</script><b>a</b> \U0001f600 שלום <!-- {{ 1 }} ' \" & \\ It was"
DESKTOP, PHONE = (
    ViewportSize(width=1280, height=900),
    ViewportSize(width=390, height=800),
)


# --- A run ------------------------------------------------------------------------


@dataclass
class Look:
    """What the command wrote."""

    path: Path
    printed: str
    data: dict[str, Any] = field(repr=False)
    relations: dict[str, list[dict[str, Any]]] = field(repr=False)

    @property
    def places(self) -> int:
        return len(self.data["tokens"])


def numbers(page: str) -> dict[str, Any]:
    """The data in a page."""
    [found] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page
    )
    return json.loads(found)


def call(folder: Path, *arguments: str, **environment: str) -> Any:
    return run_script(
        "look.py",
        *arguments,
        env={
            **os.environ,
            "DBT_NN_SCHEMA": SCHEMA,
            "DBT_TARGET_PATH": str(folder / "target"),
            **environment,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("look")


@pytest.fixture(scope="module")
def looked(folder: Path, connection: psycopg2.extensions.connection) -> Look:
    load_checkpoint(TWIN, "gpt2_twin")
    path = folder / "new" / "page.html"
    done = call(folder, HOSTILE, "max_new_tokens=5", "--output", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(path) in done.stdout
    relations = {name: rows(name) for name in COMPARED}
    return Look(path, done.stdout, numbers(path.read_text("utf-8")), relations)


def rows(relation: str, network: str = "gpt2") -> list[dict[str, Any]]:
    with closing(connect()) as opened:
        cursor = opened.cursor(cursor_factory=RealDictCursor)
        cursor.execute(f"select * from {RELATIONS}.{network}_{relation}")
        return cursor.fetchall()


# --- Numbers ----------------------------------------------------------------------


def test_the_text_is_that_of_the_tokenizer(looked: Look) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TWIN)
    ids = [token["id"] for token in looked.data["tokens"]]
    prompt_ids = tokenizer(HOSTILE).input_ids
    assert ids[: len(prompt_ids)] == prompt_ids
    assert len(ids) == len(prompt_ids) + 4  # the last one was written, not read
    assert looked.data["shown_prompt"] == HOSTILE
    counts = looked.data["prompt_tokens"], looked.data["new_tokens"]
    assert counts == (len(prompt_ids), 5)


def test_lens_is_that_of_the_relation(looked: Look) -> None:
    lens = looked.data["lens"]
    assert lens["labels"][:3] == ["0_pre", "0_mid", "1_pre"]
    assert lens["labels"][-1] == "final_post"
    number = {label: i for i, label in enumerate(lens["labels"])}
    found = looked.relations["logit_lens"]
    assert len(found) == len(lens["labels"]) * looked.places
    for row in found:
        i, place = number[row["label"]], row["position"]
        assert lens["rank"][i][place] == row["next_token_rank"]
        assert lens["kl"][i][place] == pytest.approx(row["kl_divergence"], abs=6e-4)
        guesses = [
            (lens["ids"][index], share) for index, share in lens["top"][i][place]
        ]
        assert [token_id for token_id, _ in guesses] == [
            other["token_id"] for other in row["alternatives"]
        ]
        shares = [math.exp(other["logprob"]) for other in row["alternatives"]]
        assert [share for _, share in guesses] == pytest.approx(shares, abs=6e-5)


def test_surprise_is_that_of_the_relation(looked: Look) -> None:
    bits = [token["bits"] for token in looked.data["tokens"]]
    assert bits[0] is None
    for row in looked.relations["surprise"]:
        if 0 < row["position"] < looked.places:
            assert bits[row["position"]] == pytest.approx(row["bits"], abs=6e-4)


def test_attention_is_that_of_the_relation(looked: Look) -> None:
    attention = looked.data["attention"]
    levels = np.frombuffer(base64.b64decode(attention["data"]), np.uint8)
    heads = {tuple(head): i for i, head in enumerate(attention["heads"])}
    levels = levels.reshape(len(heads), -1) / 255
    assert levels.shape[1] == looked.places * (looked.places + 1) // 2
    seen = 0
    for row in looked.relations["attention_pattern"]:
        query, key = row["query_position"], row["key_position"]
        if key > query:
            continue
        shown = levels[heads[row["layer"], row["head"]], query * (query + 1) // 2 + key]
        assert shown == pytest.approx(row["pattern"], abs=0.5001 / 255)
        seen += 1
    assert seen == levels.size


def test_attribution_is_that_of_the_relation(looked: Look) -> None:
    shown = looked.data["attribution"]
    number = {label: i for i, label in enumerate(shown["labels"])}
    assert shown["labels"][:3] == ["embed", "pos_embed", "L0H0"]
    found = looked.relations["logit_attribution"]
    assert len(found) == len(number) * looked.places
    for row in found:
        i, place = number[row["label"]], row["position"]
        assert shown["logit"][i][place] == pytest.approx(row["logit"], abs=6e-4)
        assert shown["difference"][i][place] == pytest.approx(
            row["logit_difference"], abs=6e-4
        )
    for row in looked.relations["source_attribution"]:
        source = looked.data["sources"]["logit"][row["position"]]
        assert source[row["source_position"]] == pytest.approx(row["logit"], abs=6e-4)


def test_norms_are_those_of_the_relation(looked: Look) -> None:
    shown = looked.data["norms"]
    names = [name for name, _ in shown["layers"]]
    number = {name: i for i, name in enumerate(names)}
    for row in looked.relations["layer_norms"]:
        value = shown["values"][number[row["layer_name"]]][row["position"]]
        assert value == pytest.approx(row["norm"], abs=6e-4)
    assert names.index("gpt2_h_1_ln_1") < names.index("gpt2_h_1_attn_c_attn_q")
    assert names.index("gpt2_h_9_mlp_c_proj") < names.index("gpt2_h_10_ln_1")


def test_the_sql_on_the_page_runs(looked: Look) -> None:
    with closing(connect()) as opened:
        for statement in looked.data["sql"].values():
            cursor = opened.cursor()
            cursor.execute(statement)
            assert cursor.fetchall(), statement


# --- The terminal -----------------------------------------------------------------


def test_table_of_a_pipe(looked: Look) -> None:
    """Plain text, as wide as a terminal, with the last row's likeliest tokens."""
    assert "\x1b" not in looked.printed
    lines = looked.printed.splitlines()
    assert max(map(len, lines[:27])) <= 80
    assert lines[0].startswith("after")
    [last] = [line for line in lines if line.startswith("final_post")]
    lens = looked.data["lens"]
    index, share = lens["top"][-1][-1][0]
    assert f"{share:.0%}" in last
    assert look.shown(lens["pieces"][index]) in last


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_table_is_cut_to_the_width(looked: Look, width: int) -> None:
    for colour in ("truecolor", None):
        console = Console(
            width=width, force_terminal=True, color_system=colour, record=True
        )
        with console.capture() as capture:
            console.print(look.lens_table(looked.data, console)[0])
        lines = re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()
        assert len(lines) == len(looked.data["lens"]["labels"]) + 1
        assert ("\x1b" in capture.get()) == bool(colour)


def test_messages(folder: Path, looked: Look) -> None:
    done = call(folder, "It", "steps=5")
    assert done.returncode == 1
    assert 'no option is named "steps"' in done.stderr
    done = call(folder, "It was so " * 200)
    assert done.returncode == 1
    assert "error: the prompt:" in done.stderr
    done = call(folder, "It", "max_new_tokens=1", "--output", "/dev/null/page.html")
    assert done.returncode == 1
    assert "--output names another file" in done.stderr


# --- The page's parts ---------------------------------------------------------------


def test_json_of_any_token_stays_in_its_script() -> None:
    hostile = ["</script>", "<!--<script>", "]]>", "&lt;", "\u2028", "\x00", "\ufffd"]
    written = embedded_json(hostile)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == hostile
    assert json.loads(embedded_json("\ud800")) == "?"


def wide_rows(places: int, layers: int, heads: int) -> dict[str, list[dict]]:
    """Rows of a network of that size, with random numbers."""
    random = np.random.default_rng(3)
    labels = [f"{n}_{part}" for n in range(layers) for part in ("pre", "mid")]
    guesses = [
        {"token_id": n, "token": f" token{n}", "logprob": -float(n % 7) - 0.123}
        for n in range(500)
    ]
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    components = [(f"L{layer}H{head}", layer, head) for layer, head in every]
    components += [(f"{n}_mlp_out", n, None) for n in range(layers)]
    components += [("embed", None, None), ("ln_final_bias", None, None)]
    pairs = [(query, key) for query in range(places) for key in range(query + 1)]

    def number() -> float:
        return float(random.normal() * 10)

    return {
        "tokens": [
            {
                "position": n,
                "token_id": n,
                "piece": f" token{n}",
                "is_generated": n > 40,
                "next_token_id": n + 1,
                "next_piece": f" token{n + 1}",
            }
            for n in range(places)
        ],
        "surprise": [{"position": n, "bits": abs(number())} for n in range(places)],
        "lens": [
            {
                "label": label,
                "position": n,
                "next_token_rank": n + 1,
                "next_token_logprob": -1.2345678,
                "kl_divergence": number(),
                "entropy": number(),
                "alternatives": [guesses[i] for i in random.integers(0, 500, 5)],
            }
            for label in [*labels, "final_post"]
            for n in range(places)
        ],
        "attention": [
            {
                "layer": layer,
                "head": head,
                "query_position": query,
                "key_position": key,
                "pattern": 1 / (query + 1),
            }
            for layer, head in every
            for query, key in pairs
        ],
        "scores": [
            {"layer": layer, "head": head, **dict.fromkeys(text.SCORES, 0.123456)}
            for layer, head in every
        ],
        "attribution": [
            {
                "position": n,
                "label": label,
                "layer": layer,
                "head": head,
                "logit": number(),
                "logit_difference": number(),
            }
            for label, layer, head in components
            for n in range(places)
        ],
        "sources": [
            {
                "position": query,
                "source_position": key,
                "logit": number(),
                "logit_difference": number(),
            }
            for query, key in pairs
        ],
        "norms": [
            {
                "layer_name": f"gpt2_h_{n}_{layer}",
                "part": f"h.{n}",
                "position": place,
                "norm": abs(number()),
            }
            for n in range(layers)
            for layer in ("ln_1", "attn", "attn_c_proj", "ln_2", "mlp_c_fc")
            for place in range(places)
        ],
    }


def head_of_page(**more: Any) -> dict[str, Any]:
    return {
        "network": "gpt2",
        "checkpoint": "gpt2",
        "date": "",
        "shown_prompt": "a",
        "prompt_tokens": 1,
        "new_tokens": 1,
        "command": "",
        "sql": dict.fromkeys(text.QUERIES, "select"),
        **more,
    }


def test_size_of_a_page_of_gpt2_small() -> None:
    """64 tokens, 12 layers with 12 heads: under 3 MB."""
    data = text.arrange(wide_rows(64, 12, 12))
    page = build("text", head_of_page(**data))
    assert len(page.encode()) < 3_000_000


def test_a_long_text_is_without_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_PATTERNS", 100)
    data = text.arrange(wide_rows(16, 2, 2))
    assert data["attention"]["data"] is None
    page = build("text", head_of_page(**data))
    assert "gpt2_attention_pattern" in page


# --- In a browser -------------------------------------------------------------------


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Any]:
    try:
        program = find_browser()
    except BrowserError as error:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    opened = playwright.chromium.launch(
        executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    yield opened
    opened.close()


@dataclass
class Opened:
    """A page in the browser, and what it complained about."""

    page: Page
    complaints: list[str]
    requests: list[str]

    def evaluate(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    @property
    def place(self) -> int:
        chosen = self.page.locator('#tokens [aria-selected="true"]')
        assert chosen.count() == 1
        return int(chosen.get_attribute("data-place") or -1)


def open_page(browser: Any, path: Path, **options: Any) -> Opened:
    page = browser.new_page(**{"viewport": DESKTOP, **options})
    opened = Opened(page, [], [])
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri())
    return opened


@pytest.fixture
def opened(browser: Any, looked: Look) -> Iterator[Opened]:
    """The page; in the end it has asked for nothing and complained about nothing."""
    opened = open_page(browser, looked.path)
    yield opened
    assert opened.complaints == []
    assert opened.requests == [looked.path.as_uri()]
    opened.page.close()


def test_hostile_tokens_are_text(opened: Opened, looked: Look) -> None:
    assert opened.text("h1") == HOSTILE
    assert opened.page.locator("h1 b, #tokens b").count() == 0
    shown = opened.evaluate(
        "[...document.querySelectorAll('#tokens [data-place]')]"
        ".map((token) => token.textContent.replaceAll('\\u00b7', ' '))"
    )
    # a part of a character has no text
    pieces = [token["piece"] for token in looked.data["tokens"]]
    assert shown == [piece or "\u2026" for piece in pieces]
    assert "".join(pieces).startswith(HOSTILE)


def test_a_click_chooses_a_token(opened: Opened, looked: Look) -> None:
    lens = looked.data["lens"]
    before = opened.text("#lens-table")
    opened.page.click('#tokens [data-place="2"]')
    assert opened.place == 2
    assert opened.text("#lens-table") != before
    ranks = opened.page.locator("#lens-table tbody tr td:nth-child(2)")
    assert ranks.all_inner_texts() == [str(row[2]) for row in lens["rank"]]
    assert "Place 2" in opened.text("#chosen")
    opened.page.click("#lens-grid tbody tr:nth-child(4) td:nth-of-type(5)")
    assert opened.place == 4
    column = opened.page.locator("#lens-grid thead .column")
    assert column.get_attribute("data-column") == "4"


def test_keys_choose_a_token(opened: Opened, looked: Look) -> None:
    opened.page.focus(f'#tokens [data-place="{opened.place}"]')
    opened.page.keyboard.press("Home")
    assert opened.place == 0
    opened.page.keyboard.press("ArrowLeft")
    assert opened.place == 0
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowRight")
    assert opened.place == 2
    assert opened.evaluate("document.activeElement.dataset.place") == "2"
    opened.page.keyboard.press("End")
    assert opened.place == looked.places - 1
    # the grid of the lens has its own way
    opened.page.focus("#lens-grid tbody tr:first-child td:nth-of-type(1)")
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowRight")
    assert opened.place == 1


def test_all_is_reached_by_tab(opened: Opened) -> None:
    """Tokens, grid and heads are one stop each."""
    seen = []
    opened.page.focus("#theme")
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        seen.append(
            opened.evaluate("document.activeElement.closest('[id]')?.id || 'none'")
        )
    for name in ("tokens", "lens-grid", "heads", "score", "all-components", "layers"):
        assert seen.count(name) >= 1, (name, seen)
    assert seen.count("tokens") == seen.count("heads") == seen.count("lens-grid") == 1


def test_a_head_is_chosen(opened: Opened, looked: Look) -> None:
    opened.page.click('#heads [data-head="5"]')
    layer, head = looked.data["attention"]["heads"][5]
    assert opened.text("#head-title").startswith(f"L{layer}H{head}:")
    assert opened.page.is_checked('input[name="shading"][value="attention"]')
    assert "attention" in opened.text("#text-legend")
    before = opened.text("#looks")
    opened.page.keyboard.press("ArrowRight")
    opened.page.focus('#heads [data-head="5"]')
    opened.page.keyboard.press("ArrowRight")
    assert not opened.text("#head-title").startswith(f"L{layer}H{head}:")
    assert opened.text("#looks") != before
    # weights of the chosen place add up to 1
    shares = opened.evaluate(
        "(() => { let sum = 0; for (let key = 0; key <= state.place; key++)"
        " sum += patternAt(state.head, state.place, key); return sum; })()"
    )
    assert shares == pytest.approx(1, abs=looked.places * 0.5 / 255)


def test_heads_are_sorted_by_a_score(opened: Opened, looked: Look) -> None:
    opened.page.select_option("#score", "previous_token_score")
    opened.page.check("#sort")
    scores = looked.data["scores"]["previous_token_score"]
    best = max(range(len(scores)), key=lambda i: scores[i])
    first = opened.page.locator("#heads [data-head]").first
    assert scores[int(first.get_attribute("data-head") or -1)] == scores[best]


def test_bars_add_up(opened: Opened, looked: Look) -> None:
    """What is shown adds up to the logit, and the switch shows the difference."""

    def total() -> float:
        texts = opened.page.locator("#components .number").all_inner_texts()
        return sum(float(number.replace("\u2212", "-")) for number in texts)

    place = opened.place
    for name in ("logit", "difference"):
        opened.page.check(f'input[name="target"][value="{name}"]')
        wanted = sum(row[place] for row in looked.data["attribution"][name])
        assert total() == pytest.approx(wanted, abs=0.1)
        assert f"{abs(wanted):.2f}" in opened.text("#attribution-sum")
    opened.page.click("#all-components")
    labels = opened.page.locator("#components th").all_inner_texts()
    assert labels == looked.data["attribution"]["labels"]


def test_a_layer_names_its_model(opened: Opened) -> None:
    opened.page.locator(".layer-box", has_text="mlp_c_fc").first.click()
    assert opened.text("#layer-name") == "gpt2_h_0_mlp_c_fc"


def test_light_and_dark(browser: Any, looked: Look) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        opened = open_page(browser, looked.path, color_scheme=scheme)
        ground = "getComputedStyle(document.body).backgroundColor"
        grounds[scheme] = opened.evaluate(ground)
        assert opened.evaluate("document.documentElement.dataset.theme") == scheme
        opened.page.click("#theme")
        assert opened.evaluate(ground) != grounds[scheme]
        assert opened.complaints == []
        opened.page.close()
    assert grounds["light"] != grounds["dark"]


def test_a_phone_scrolls_downwards_only(browser: Any, looked: Look) -> None:
    opened = open_page(browser, looked.path, viewport=PHONE, has_touch=True)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.page.tap('#tokens [data-place="1"]')
    assert opened.place == 1
    opened.page.close()


def test_every_control_has_a_name(opened: Opened) -> None:
    """For those who hear the page: buttons, options and pictures have names."""
    nameless = opened.evaluate(
        "[...document.querySelectorAll('button, [role=option], [role=img], select')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim()"
        " || e.labels?.length)).length"
    )
    assert nameless == 0
    assert opened.evaluate("document.documentElement.lang") == "en"


def test_contrast_of_what_is_coloured(opened: Opened) -> None:
    """Text on a shade has a contrast of 4.5 at least, in light and dark."""
    script = """() => [
        ...document.querySelectorAll('.token, #lens-grid td, .layer-box'),
      ].map((e) => getComputedStyle(e)).map((s) => [s.color, s.backgroundColor])"""

    def luminance(colour: str) -> float:
        rgb = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb
        ]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for _ in range(2):
        for pair in opened.evaluate(script):
            low, high = sorted(map(luminance, pair))
            assert (high + 0.05) / (low + 0.05) >= 4.5, pair
        opened.page.click("#theme")


# --- Images -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(folder: Path, connection: psycopg2.extensions.connection) -> Look:
    """A page of two images in three steps."""
    load_checkpoint(UNET_TWIN, "ddpm_twin")
    path = folder / "image.html"
    options = ("seed=3", "num_inference_steps=3", "batch_size=2")
    done = call(folder, "--image", *options, "--output", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    relations = {
        name: rows(name, "ddpm")
        for name in (
            "predictions",
            "pixels",
            "activation_components",
            "place_attention",
        )
    }
    return Look(path, done.stdout, numbers(path.read_text("utf-8")), relations)


def pixels_of(uri: str) -> np.ndarray:
    """The bytes of a picture on the page."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)


def test_pictures_are_those_of_the_relations(drawn: Look) -> None:
    images = {image["id"]: image for image in drawn.data["images"]}
    assert len(images) == 2
    samples = {
        (key, step): pixels_of(uri)
        for key, image in images.items()
        for step, uri in zip(image["steps"], image["samples"], strict=True)
    }
    assert {step for _, step in samples} == {0, 1, 2, 3}
    for row in drawn.relations["pixels"]:
        shown = samples[row["image_id"], row["step"]][row["y"], row["x"]]
        assert shown.tolist() == row["pixel"]
    seen = 0
    for row in drawn.relations["predictions"]:
        image = images[row["image_id"]]
        shown = pixels_of(image["predictions"][image["steps"].index(row["step"])])
        value = np.array(json.loads(row["channels"]))
        wanted = np.clip(value / 2 + 0.5, 0, 1) * 255
        assert shown[row["y"], row["x"]] == pytest.approx(wanted, abs=0.51)
        seen += 1
    assert seen == 2 * 3 * 32 * 32


def test_layers_are_in_the_order_of_the_network(drawn: Look) -> None:
    names = [layer["name"] for layer in drawn.data["layers"]]
    assert {*names} == {
        row["layer_name"] for row in drawn.relations["activation_components"]
    }
    assert names[0] == "ddpm_conv_in"
    assert names[-1] == "ddpm_conv_out"
    sides = [layer["images"][0]["size"][0] for layer in drawn.data["layers"]]
    middle = next(i for i, name in enumerate(names) if "mid_block" in name)
    assert sides[: middle + 1] == sorted(sides[: middle + 1], reverse=True)
    assert sides[middle:] == sorted(sides[middle:])


def test_page_of_images(browser: Any, drawn: Look) -> None:
    opened = open_page(browser, drawn.path)
    page = opened.page
    source = "document.querySelector('#{}').src"
    before = opened.evaluate(source.format("prediction"))
    page.focus("#step")
    page.keyboard.press("Home")
    assert opened.text("#step-name") == "0 of 3"
    assert opened.evaluate(source.format("prediction")) != before
    page.click('#strip-samples [data-step="2"]')
    assert opened.text("#step-name") == "2 of 3"
    image = drawn.data["images"][0]
    assert opened.evaluate(source.format("sample")) == image["samples"][2]
    assert opened.evaluate(source.format("prediction")) == image["predictions"][2]
    page.click('#gallery [data-layer="3"]')
    assert opened.text("#layer-name") == drawn.data["layers"][3]["name"]
    page.keyboard.press("ArrowRight")
    page.focus('#gallery [data-layer="3"]')
    page.keyboard.press("ArrowRight")
    assert opened.text("#layer-name") == drawn.data["layers"][4]["name"]
    page.select_option("#image", index=1)
    other = drawn.data["images"][1]
    assert opened.evaluate(source.format("sample")) == other["samples"][2]
    page.set_viewport_size(PHONE)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.complaints == []
    pictures = [url for url in opened.requests if not url.startswith("data:")]
    assert pictures == [drawn.path.as_uri()]
    assert drawn.path.stat().st_size < 3_000_000
    page.close()
