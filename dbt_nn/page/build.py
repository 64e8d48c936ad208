"""A page put together: its HTML, style, script and numbers in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).resolve().parent


def embedded_json(data: Any) -> str:
    """JSON that may stand in a <script>: whatever a token is, it stays text.

    `<` and `&` are escaped, so that neither `</script>` nor `<!--` is in it. Half of a
    surrogate pair, which is no character, is U+FFFD.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "replace").decode("utf-8")
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def build(name: str, data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        name: of its HTML and its JavaScript in this folder. The HTML has the names
            `data`, and `numbers`, the same as JSON.
        data: what the page shows.

    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html").render(
        data=data,
        numbers=embedded_json(data),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script="\n".join(
            (HERE / file).read_text(encoding="utf-8")
            for file in ("common.js", f"{name}.js")
        ),
    )
