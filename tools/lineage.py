"""Draw docs/lineage.png: the first transformer block, as dbt docs shows it.

    make lineage

writes the documentation site to target/lineage, opens its lineage graph in a
headless Chromium or Chrome, and puts two views of it one above the other. The
picture holds the arrows that it shows, so that a test can say when it is out of date.
"""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dbt_nn.cli import command
from dbt_nn.command_line import PROJECT
from dbt_nn.database import DatabaseError
from dbt_nn.runner import dbt
from tools.browser import Browser, open_browser

PICTURE = PROJECT / "docs" / "lineage.png"
TARGET = PROJECT / "target" / "lineage"
KEY = "arrows"  # of the picture's text: those of each view, as JSON

WINDOW = (1340, 700)  # points
SCALE = 2  # pixels a point
MARGIN = 20  # points around the graph
GAP = 8  # pixels between the views
COLORS = 128  # boxes have a few, their smooth edges many

ARROWS = "graph.edges().map(edge => [edge.source().id(), edge.target().id()])"
# Where the graph's nodes are in the window, in points: left, top, right, bottom.
PLACE = """(() => {
    const box = graph.elements(':visible').renderedBoundingBox();
    const page = graph.container().getBoundingClientRect();
    return [box.x1, box.y1, box.x2, box.y2].map(
        (edge, i) => edge + (i % 2 ? page.top : page.left));
})()"""


@dataclass(frozen=True)
class View:
    """What the lineage graph shows, as for dbt's --select and --exclude."""

    select: str
    exclude: str = ""


VIEWS = (
    # from the prompts to the first block's queries, keys and values
    View(" ".join(f"+gpt2_h_0_attn_c_attn_{letter}" for letter in "qkv")),
    # from there to the block's end
    View(
        " ".join(
            f"1+gpt2_h_0_{layer}"
            for layer in (
                *("attn_kv_blocks", "attn", "attn_c_proj"),
                *("ln_2", "mlp_c_fc", "mlp_c_proj"),
            )
        ),
        "source:gpt2.config",
    ),
)


def open_lineage(browser: Browser, site: str, view: View) -> list[list[str]]:
    """Show a view of a site; its arrows, from name to name, sorted."""
    address = f"{site}#!/overview?g_v=1&g_i={quote(view.select)}"
    browser.open(f"{address}&g_e={quote(view.exclude)}")
    browser.wait_for("window.graph && graph.nodes(':visible').length")
    return sorted(browser.evaluate(ARROWS.replace("()", "(':visible')", 1)))


def picture_of(browser: Browser) -> Image.Image:
    """What the graph shows, cut out of the window once nothing moves any more."""
    place, shown = None, browser.screenshot()
    while True:
        before, place = (place, shown), browser.evaluate(PLACE)
        shown = browser.screenshot()
        if before == (place, shown):
            break
    left, top, right, bottom = place
    box = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
    limits = (*WINDOW, *WINDOW)
    box = [min(max(edge, 0), limit) for edge, limit in zip(box, limits, strict=True)]
    with Image.open(io.BytesIO(shown)) as image:
        return image.convert("RGB").crop([round(edge * SCALE) for edge in box])


def stacked(images: list[Image.Image]) -> Image.Image:
    """One above the other, as wide as the widest."""
    width = max(image.width for image in images)
    sizes = [round(image.height * width / image.width) for image in images]
    whole = Image.new("RGB", (width, sum(sizes) + GAP * (len(sizes) - 1)), "white")
    top = 0
    for image, height in zip(images, sizes, strict=True):
        whole.paste(image.resize((width, height), Image.Resampling.LANCZOS), (0, top))
        top += height + GAP
    return whole


@command(__doc__)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=PICTURE,
    help=f"The picture (default: {PICTURE}).",
)
def main(out: Path) -> int:
    """Carry out the command line."""
    # the graph needs no more than the manifest: one model is compiled, none looked up
    options = ["--static", "--empty-catalog", "--select", "gpt2_frontier"]
    if dbt("docs", "generate", *options, "--target-path", str(TARGET)) != 0:
        raise DatabaseError("dbt has not written the documentation site")
    arrows, images = [], []
    with (
        tempfile.TemporaryDirectory(prefix="dbt_nn-lineage-") as folder,
        open_browser(Path(folder) / "browser") as browser,
    ):
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=WINDOW[0],
            height=WINDOW[1],
            deviceScaleFactor=SCALE,
            mobile=False,
        )
        for view in VIEWS:
            page = (TARGET / "static_index.html").as_uri()
            arrows.append(open_lineage(browser, page, view))
            images.append(picture_of(browser))
    about = PngInfo()
    about.add_text(KEY, json.dumps(arrows))
    stacked(images).quantize(COLORS).save(out, optimize=True, pnginfo=about)
    print(out)
    return 0
