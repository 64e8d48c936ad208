"""Draw the pictures of docs/insight.md: pages of dbt-nn look, as they come out.

    make look-pictures

looks at three prompts, opens their pages in a headless Chromium or Chrome, and takes
a part of each: the text and the logit lens, a head, and what a guess is made of.
"""

from __future__ import annotations

import base64
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image

from dbt_nn.cli import command, invoke
from dbt_nn.command_line import PROJECT
from dbt_nn.database import DatabaseError
from dbt_nn.look import main as look
from tools.browser import Browser, open_browser

FOLDER = PROJECT / "docs"
WINDOW = (1120, 900)  # points
MARGIN = 12  # points


@dataclass(frozen=True)
class View:
    """A part of a page.

    Attributes:
        name: of the picture.
        prompt: what is looked at.
        first: selector of the uppermost element that is shown.
        last: of the lowest.
        script: what is done before, in JavaScript.
        dark: whether the page is dark.

    """

    name: str
    prompt: str
    first: str
    last: str
    script: str = ""
    dark: bool = False


VIEWS = (
    View("look.png", "Elizabeth was", "header", "#lens-grid"),
    View(
        "look_attention.png",
        "Mr. Darcy smiled. Miss Bingley smiled. Mr.",
        "#attention",
        "#attention .split",
        "document.querySelector('#sort').click()",
    ),
    View(
        "look_attribution.png",
        "It is a truth universally acknowledged",
        "#attribution",
        "#attribution .split",
        "document.querySelector('[name=target][value=difference]').click()",
        dark=True,
    ),
)


def picture_of(browser: Browser, page: Path, view: View) -> Image.Image:
    """The part of a page, cut out of it."""
    browser.open(page.as_uri())
    theme = "dark" if view.dark else "light"
    browser.evaluate(f"setTheme('{theme}')")
    # what sticks to the window would be above other panels
    browser.evaluate("document.querySelector('#text').style.position = 'static'")
    if view.script:
        browser.evaluate(view.script)
    edge = "document.querySelector('{}').getBoundingClientRect().{} + scrollY"
    top = browser.evaluate(edge.format(view.first, "top")) - MARGIN
    bottom = browser.evaluate(edge.format(view.last, "bottom")) + 4
    clip = {"x": 0, "y": top, "width": WINDOW[0], "height": bottom - top, "scale": 1}
    shot = browser.call(
        "Page.captureScreenshot", clip=clip, captureBeyondViewport=True
    )["data"]
    with Image.open(io.BytesIO(base64.b64decode(shot))) as image:
        return image.convert("RGB")


@command(__doc__)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    help=f"Folder of the pictures (default: {FOLDER}).",
)
def main(out: Path) -> int:
    """Carry out the command line."""
    with (
        tempfile.TemporaryDirectory(prefix="dbt_nn-look-") as folder,
        open_browser(Path(folder) / "browser") as browser,
    ):
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=WINDOW[0],
            height=WINDOW[1],
            deviceScaleFactor=1,
            mobile=False,
        )
        # they would go for the picture, and the page be laid out anew
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        for view in VIEWS:
            page = Path(folder) / "page.html"
            if invoke(look, [view.prompt, "--output", str(page)]):
                raise DatabaseError(f"there is no page of {view.prompt!r}, see above")
            path = out / view.name
            picture_of(browser, page, view).save(path, optimize=True)
            print(path)
    return 0
