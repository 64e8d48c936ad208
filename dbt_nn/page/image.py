"""What a page of images shows, from the relations of a run."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import psycopg2
from PIL import Image
from psycopg2 import sql

from dbt_nn.database import DatabaseError, connect
from dbt_nn.pictures import MODES, Drawing, read_drawings

STEPS = 24  # of an image that are shown, at most: first, last, and evenly between
IMAGES = 4
SIDE = 64  # pixels of a picture on the page, at most
ROUNDED = (
    f"Pictures have 256 levels a channel and {SIDE} pixels a side at most, and "
    f"{STEPS} steps are shown at most."
)

QUERIES = {
    "samples": """select image_id, step, timestep, y, x, pixel
from {pixels}
order by image_id, step, y, x""",
    "predictions": """select image_id, step, y, x, channels::real[]
from {predictions}
where step = any(%s) and image_id = any(%s)
order by image_id, step, y, x""",
    "components": """select layer_name, image_id, component, y, x, value, explained
from {activation_components}
where image_id = any(%s)
order by layer_name, image_id, component, y, x""",
    "attention": """select layer_name, image_id, head, query_y, query_x, key_y, key_x,
    pattern
from {place_attention}
where image_id = any(%s)
order by layer_name, image_id, head, key_y, key_x""",
}


def data_uri(array: np.ndarray) -> str:
    """A PNG of [height, width] or [height, width, channels] of bytes."""
    image = Image.fromarray(array, MODES[1 if array.ndim == 2 else array.shape[2]])
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def levels(channels: np.ndarray) -> np.ndarray:
    """Channels from -1 to 1, [height, width, n], as bytes; one channel is grey."""
    values = np.rint(np.clip(channels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    return values[:, :, 0] if values.shape[2] == 1 else values


def statement(network: str, schema: str, panel: str) -> str:
    """A panel's query, with its parameters open."""
    names = {
        name: sql.Identifier(schema, f"{network}_{name}")
        for name in re.findall(r"\{(\w+)\}", QUERIES[panel])
    }
    with closing(connect()) as connection:
        return sql.SQL(QUERIES[panel]).format(**names).as_string(connection)


def read(network: str, schema: str) -> dict[str, Any]:
    """All that the page shows of a run's images, without its head.

    Args:
        network: name of its folder in models/.
        schema: of its relations.

    Raises:
        DatabaseError: nothing was drawn, or a relation can't be read.

    """
    drawings = read_drawings(network, schema=schema)[:IMAGES]
    ids = [drawing.image_id for drawing in drawings]
    steps = {drawing.image_id: shown_steps(drawing) for drawing in drawings}
    every = sorted({step for some in steps.values() for step in some})
    given = {"predictions": [every, ids], "components": [ids], "attention": [ids]}
    statements = {panel: statement(network, schema, panel) for panel in QUERIES}
    rows: dict[str, list[tuple]] = {}
    with closing(connect()) as connection, connection.cursor() as cursor:
        for panel, values in given.items():
            try:
                cursor.execute(statements[panel], values)
                rows[panel] = cursor.fetchall()
            except psycopg2.Error as error:
                raise DatabaseError(
                    f"what looks inside {network} can't be read: "
                    f"{str(error).strip()}\nIf its models are of an older version, "
                    "write them anew by `dbt-nn generate`"
                ) from None
    predicted = predictions(rows["predictions"])
    return {
        "images": [
            {
                "id": drawing.image_id,
                "steps": steps[drawing.image_id],
                "last": drawing.last_step,
                "samples": [
                    data_uri(np.asarray(drawing.frames[step]))
                    for step in steps[drawing.image_id]
                ],
                "predictions": [
                    predicted.get((drawing.image_id, step))
                    for step in steps[drawing.image_id]
                ],
            }
            for drawing in drawings
        ],
        "layers": components(rows["components"], ids),
        "attention": attention(rows["attention"], ids),
        "rounded": ROUNDED,
        "sql": {
            panel: re.sub(r"\n?(where|and) [^\n]*%s[^\n]*", "", text)
            for panel, text in statements.items()
        },
    }


def shown_steps(drawing: Drawing) -> list[int]:
    """The steps that the page has, of those that were read."""
    there = sorted(drawing.frames)
    picked = np.linspace(0, len(there) - 1, min(STEPS, len(there)))
    return [there[round(at)] for at in picked]


def picture(rows: Iterable[tuple[int, int, Any]]) -> np.ndarray:
    """(y, x, value) of every pixel as an array; value is a number or some."""
    rows = list(rows)
    height, width = (max(row[i] for row in rows) + 1 for i in (0, 1))
    array = np.zeros((height, width, *np.shape(rows[0][2])))
    for y, x, value in rows:
        array[y, x] = value
    return array


def grouped(rows: Iterable[tuple], by: int) -> dict[tuple, list[tuple]]:
    """Rows by their first columns, without them."""
    found: dict[tuple, list[tuple]] = {}
    for row in rows:
        found.setdefault(row[:by], []).append(row[by:])
    return found


def predictions(rows: list[tuple]) -> dict[tuple[int, int], str]:
    """The predicted picture by (image, step)."""
    return {
        key: data_uri(levels(picture(some))) for key, some in grouped(rows, 2).items()
    }


def components(rows: list[tuple], ids: list[int]) -> list[dict[str, Any]]:
    """Each layer's first principal components, in the network's order.

    A component is grey where it is 0; three of them together are red, green and blue.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for (name, image_id), some in grouped(rows, 2).items():
        parts = []
        explained = []
        for (_, share), values in grouped(
            ((row[0], row[4], *row[1:4]) for row in some), 2
        ).items():
            array = picture(values)
            most = np.abs(array).max() or 1
            parts.append(array / most)
            explained.append(round(float(share), 3))
        together = np.zeros((*parts[0].shape, 3))
        for i, part in enumerate(parts[:3]):
            together[:, :, i] = part
        found.setdefault(name, {})[image_id] = {
            "together": data_uri(levels(together)),
            "parts": [data_uri(levels(part[:, :, None])) for part in parts],
            "explained": explained,
            "size": list(parts[0].shape),
        }
    return [
        {"name": name, "images": [found[name].get(image_id) for image_id in ids]}
        for name in sorted(found, key=layer_order)
    ]


def attention(rows: list[tuple], ids: list[int]) -> list[dict[str, Any]]:
    """Where a place looks in each layer and head: white is the largest weight."""
    found: dict[tuple, dict[int, dict[str, Any]]] = {}
    for (name, image_id, head), some in grouped(rows, 3).items():
        array = picture((y, x, weight) for _, _, y, x, weight in some)
        most = float(array.max()) or 1
        found.setdefault((name, head), {})[image_id] = {
            "map": data_uri(np.rint(array / most * 255).astype(np.uint8)),
            "most": round(most, 4),
            "place": list(some[0][:2]),
            "size": list(array.shape),
        }
    return [
        {
            "name": name,
            "head": head,
            "images": [found[name, head].get(image_id) for image_id in ids],
        }
        for name, head in sorted(found, key=lambda key: (layer_order(key[0]), key[1]))
    ]


def layer_order(name: str) -> tuple:
    """Where a layer of a UNet is on the way: down, the middle, up."""
    parts = ("conv_in", "down_blocks", "mid_block", "up_blocks", "")
    place = next(i for i, part in enumerate(parts) if part in name)
    kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
    numbers = [int(number) for number in re.findall(r"_(\d+)", name)]
    kind = next((i for i, kind in enumerate(kinds) if kind in name), -1)
    if "mid_block" in name:  # resnet, attention, resnet
        numbers = [0, *numbers]
        return (place, 0, 2 * numbers[1] + (kind == 1), 0, name)
    block = numbers[0] if numbers else 0
    late = kind >= 2  # after all resnets of a block
    within = numbers[1] if len(numbers) > 1 and not late else 1 << 30 if late else 0
    return (place, block, within, kind, name)


def facts(data: Mapping[str, Any]) -> str:
    """A line of what was drawn."""
    images = data["images"]
    steps = images[0]["last"]
    count = f"{len(images)} image{'s' if len(images) > 1 else ''}"
    return f"{count}, {steps} steps"
