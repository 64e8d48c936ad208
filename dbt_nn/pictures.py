"""Write what an image network drew as PNG and GIF, and show it in the terminal.

    dbt-nn pictures
    dbt-nn pictures --network butterflies --image 2 5 --zoom 8

reads the view <network>_pixels of the last run, of `dbt-nn draw` or of `dbt run`, and
writes a PNG of each finished image, a grid of all of them if there are several, and
a GIF of the way there from noise. What it wrote of an earlier run is removed.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np
import psycopg2
from PIL import Image
from psycopg2 import sql

from dbt_nn.cli import command
from dbt_nn.database import DatabaseError, connect, own_schema, settings

FOLDER = Path("pictures")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
ZOOM = 4  # 32 pixels are a stamp on a screen
GAP = 2  # pixels between the images of a grid

GIF_FRAMES = 60  # at most
GIF_SIZE = 256  # pixels of the shorter side, at least
GIF_MS = 3000  # from noise to picture, if there are enough frames
GIF_FRAME_MS = (50, 200)  # of one frame, at least and at most
GIF_LAST_MS = 2000

PREVIEW_ROWS = 72  # pixels, two a line
SHADES = " .:-=+*#%@"  # from dark to light
CUBE = (0, 95, 135, 175, 215, 255)  # of each channel in a terminal of 256 colours


@dataclass
class Drawing:
    """An image's way from noise to picture."""

    image_id: int
    last_step: int
    frames: dict[int, Image.Image] = field(default_factory=dict)  # by step

    def at(self, share: float) -> Image.Image:
        """The frame at a share of the way, from 0 to 1."""
        return self.frames[self.step(share)]

    def step(self, share: float) -> int:
        return round(self.last_step * share)

    @property
    def picture(self) -> Image.Image:
        return self.frames[self.last_step]


# --- From the database --------------------------------------------------------


def frame_shares(drawings: Iterable[Drawing]) -> list[float]:
    """Where a GIF's frames are on the way from noise (0) to picture (1)."""
    last = min(max(drawing.last_step for drawing in drawings), GIF_FRAMES - 1)
    return [frame / last for frame in range(last + 1)]


def read_drawings(
    network: str,
    image_ids: list[int] | None = None,
    *,
    way: bool = True,
    schema: str | None = None,
) -> list[Drawing]:
    """The finished images of a network in the order of image_id.

    Args:
        network: name of its folder in models/.
        image_ids: some of them (default: all that are finished).
        schema: of the results (default: the profile's).
        way: with the frames of a GIF; else with the picture only.

    Raises:
        DatabaseError: nothing to read, or nothing that is a picture.

    """
    schema = schema or settings()["schema"]
    pixels = sql.Identifier(schema, f"{network}_pixels")
    with closing(connect()) as connection:
        # one snapshot, even beside a run
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        try:
            with connection, connection.cursor() as cursor:
                _check_network(cursor, schema, network)
                drawings = _finished(cursor, pixels, network, image_ids)
                shares = frame_shares(drawings) if way else [1]
                for drawing in drawings:
                    steps = sorted({drawing.step(share) for share in shares})
                    read_frames(cursor, pixels, network, drawing, steps)
        except psycopg2.Error as error:
            raise DatabaseError(
                f"{schema}.{network}_pixels can't be read: {str(error).strip()}"
            ) from None
    return drawings


def schema_of_last_run(network: str) -> str:
    """The profile's schema, or the command line's where its run is the newer.

    Each run of dbt makes the table <network>_requests anew: the newer has the
    higher oid.
    """
    schema = settings()["schema"]
    with closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select nspname from pg_class "
            "inner join pg_namespace on pg_namespace.oid = relnamespace "
            "where relname = %s and nspname in (%s, %s) "
            "order by pg_class.oid desc limit 1",
            [f"{network}_requests", schema, own_schema(schema)],
        )
        found = cursor.fetchone()
    return found[0] if found else schema


def _check_network(
    cursor: psycopg2.extensions.cursor, schema: str, network: str
) -> None:
    """Raise an error unless there is a view of its pixels."""
    cursor.execute(
        "select left(table_name, -length('_pixels')) from information_schema.columns "
        "where table_schema = %s and column_name = 'pixel' "
        r"and table_name like '%%\_pixels' order by 1",
        [schema],
    )
    known = [name for (name,) in cursor]
    if network not in known:
        raise DatabaseError(
            f"no image network {network!r} was run in the schema {schema}: "
            f"run `dbt run --select {network}` first"
            + (f", or choose one that was: {', '.join(known)}" if known else "")
        )


def _finished(
    cursor: psycopg2.extensions.cursor,
    pixels: sql.Identifier,
    network: str,
    image_ids: list[int] | None,
) -> list[Drawing]:
    query = sql.SQL(
        "select image_id, max(step), min(timestep) = -1 from {} group by image_id"
        " order by image_id"
    )
    cursor.execute(query.format(pixels))
    found = {image_id: (step, finished) for image_id, step, finished in cursor}
    run = f"run `dbt run --select {network}`"
    if not found:
        raise DatabaseError(f"{network} has drawn nothing yet: {run}")
    missing = sorted(set(image_ids or []) - set(found))
    if missing:
        raise DatabaseError(
            f"{network} has no image {', '.join(map(str, missing))}: its images are "
            + ", ".join(map(str, found))
        )
    chosen = {i: found[i] for i in found if image_ids is None or i in image_ids}
    unfinished = [i for i, (_, finished) in chosen.items() if not finished]
    if image_ids is None and len(unfinished) < len(chosen):
        return [Drawing(i, step) for i, (step, done) in chosen.items() if done]
    if unfinished:
        raise DatabaseError(
            f"{network} has not finished image {', '.join(map(str, unfinished))}: "
            f"{run} with the same options, which goes on from the newest step"
        )
    return [Drawing(i, step) for i, (step, _) in chosen.items()]


def read_frames(
    cursor: psycopg2.extensions.cursor,
    pixels: sql.Identifier,
    network: str,
    drawing: Drawing,
    steps: list[int],
) -> None:
    """Read an image's frames at these steps."""
    # An array's binary form, [places, channels]: four integers and a bound for each
    # dimension, then a length and a value for each element.
    query = sql.SQL(
        "select step, max(y) + 1, max(x) + 1, max(cardinality(pixel)), "
        "array_send(array_agg(pixel order by y, x)) from {} "
        "where image_id = %s and step = any(%s) group by step"
    )
    cursor.execute(query.format(pixels), [drawing.image_id, steps])
    element = np.dtype([("length", ">i4"), ("value", ">i2")])
    for step, height, width, channels, binary in cursor:
        if channels not in MODES:
            raise DatabaseError(
                f"{network} draws images of {channels} channels, and a PNG has 1 "
                f"(grey), 3 (RGB) or 4 (RGBA): query the view {network}_pixels"
            )
        count = height * width * channels
        values = np.frombuffer(binary, element, offset=len(binary) - 6 * count)
        array = values["value"].astype(np.uint8).reshape(height, width, channels)
        drawing.frames[step] = Image.fromarray(
            array[:, :, 0] if channels == 1 else array, MODES[channels]
        )


# --- Pictures -----------------------------------------------------------------


def zoomed(image: Image.Image, zoom: int) -> Image.Image:
    """Each pixel `zoom` times as wide and high."""
    if zoom == 1:
        return image
    size = (image.width * zoom, image.height * zoom)
    return image.resize(size, Image.Resampling.NEAREST)


def grid(images: list[Image.Image]) -> Image.Image:
    """The images row by row, in about as many rows as columns, on white."""
    if len(images) == 1:
        return images[0]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    mode = images[0].mode
    white = 255 if mode == "L" else (255,) * len(mode)
    sheet = Image.new(
        mode,
        (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP),
        white,
    )
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (column * (width + GAP), row * (height + GAP)))
    return sheet


def opaque(image: Image.Image) -> Image.Image:
    """In RGB, what is transparent on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def png(image: Image.Image, zoom: int = 1) -> bytes:
    file = io.BytesIO()
    zoomed(image, zoom).save(file, "PNG", optimize=True)
    return file.getvalue()


def gif(drawings: list[Drawing], zoom: int = 1) -> bytes:
    """All images from noise to picture; each frame has a palette of its own."""
    frames = [
        opaque(grid([drawing.at(share) for drawing in drawings]))
        for share in frame_shares(drawings)
    ]
    zoom = max(zoom, math.ceil(GIF_SIZE / min(frames[0].size)))
    least, most = GIF_FRAME_MS
    duration = [min(max(GIF_MS // len(frames), least), most)] * len(frames)
    duration[-1] = GIF_LAST_MS
    first, *others = (
        # colours before size: each pixel counts once
        zoomed(frame.quantize(256, dither=Image.Dither.NONE), zoom)
        for frame in frames
    )
    file = io.BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=duration, loop=0
    )
    return file.getvalue()


def is_ours(path: Path, network: str) -> bool:
    """Whether a file has a name that write_pictures() gives."""
    name = rf"{re.escape(network)}-(-?\d+|grid)\.(png|gif)"
    return bool(re.fullmatch(name, path.name)) and path.is_file()


def remove_earlier(network: str, folder: Path, kept: Iterable[Path]) -> None:
    """Remove the pictures of an earlier run."""
    for path in set(folder.iterdir()) - set(kept):
        if is_ours(path, network):
            with suppress(OSError):
                path.unlink()


def write_file(path: Path, content: bytes) -> Path:
    """All of the file or nothing: a reader never finds half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DatabaseError(f"{path} can't be written: {error.strerror}") from None
    return path


def write_pictures(
    network: str,
    drawings: list[Drawing],
    folder: Path = FOLDER,
    *,
    zoom: int = 1,
    animated: bool = True,
) -> list[Path]:
    """PNG files, the grid and the GIF; returns their paths, the images' first."""
    pictures = {
        folder / f"{network}-{drawing.image_id}.png": png(drawing.picture, zoom)
        for drawing in drawings
    }
    together = f"{network}-{drawings[0].image_id}"
    if len(drawings) > 1:
        together = f"{network}-grid"
        sheet = grid([drawing.picture for drawing in drawings])
        pictures[folder / f"{together}.png"] = png(sheet, zoom)
    if animated:
        pictures[folder / f"{together}.gif"] = gif(drawings, zoom)
    return [write_file(path, content) for path, content in pictures.items()]


# --- In the terminal ----------------------------------------------------------


def colour_depth(stream: TextIO) -> int | None:
    """How many bits of colour a stream shows, 0 for text; None: no terminal."""
    if not stream.isatty():
        return None
    term = os.environ.get("TERM", "")
    if os.environ.get("NO_COLOR") or term in ("", "dumb"):
        return 0
    with suppress(LookupError, UnicodeEncodeError):
        "▀".encode(stream.encoding or "ascii")
        if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
            return 24
        if term.endswith("-direct"):
            return 24
        if "256color" in term:
            return 8
    return 0


def preview(image: Image.Image, depth: int, columns: int) -> str:
    """The image as lines of text, two rows of pixels in each.

    Args:
        image: is shrunk if it is wider or higher than there is room.
        depth: 24 or 8 bits of colour, or 0 for shades of text.
        columns: the terminal's width.

    """
    image = opaque(image)
    scale = min(1, columns / image.width, PREVIEW_ROWS / image.height)
    width = max(1, int(image.width * scale))
    lines = max(1, math.ceil(image.height * scale / 2))
    if depth == 0:
        grey = image.convert("L").resize((width, lines), Image.Resampling.BOX)
        text = np.array(list(SHADES))[np.asarray(grey, int) * len(SHADES) // 256]
        return "\n".join("".join(line).rstrip() for line in text)
    pixels = np.asarray(image.resize((width, 2 * lines), Image.Resampling.BOX))
    return "\n".join(
        "".join(
            f"\x1b[38;{_colour(above, depth)};48;{_colour(below, depth)}m▀"
            for above, below in zip(pixels[row], pixels[row + 1], strict=True)
        )
        + "\x1b[0m"
        for row in range(0, 2 * lines, 2)
    )


def _colour(pixel: np.ndarray, depth: int) -> str:
    red, green, blue = (int(value) for value in pixel)
    if depth == 24:
        return f"2;{red};{green};{blue}"
    nearest = [
        min(range(6), key=lambda level: abs(CUBE[level] - value))
        for value in (red, green, blue)
    ]
    return f"5;{16 + 36 * nearest[0] + 6 * nearest[1] + nearest[2]}"


def show(paths: list[Path], drawings: list[Drawing], stream: TextIO) -> None:
    """Print a preview, if there is a terminal to see it in, and the paths."""
    depth = colour_depth(stream)
    if depth is not None:
        columns = shutil.get_terminal_size().columns
        sheet = grid([drawing.picture for drawing in drawings])
        print(preview(sheet, depth, columns), end="\n\n", file=stream)
    of_images, rest = paths[: len(drawings)], paths[len(drawings) :]
    if len(of_images) > 2:
        of_images = [f"{of_images[0]} … {of_images[-1]} ({len(of_images)} files)"]
    for path in [*rest, *of_images]:
        print(path, file=stream)


@dataclass(frozen=True)
class Files:
    """Which picture files are written, and where."""

    out: Path = FOLDER
    zoom: int = ZOOM
    no_gif: bool = False


def picture_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that drawing shares with this command: `network` and `files`."""

    @click.option(
        "--network", default="ddpm", help="Its folder in models/ (default: ddpm)."
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=FOLDER,
        metavar="FOLDER",
        help=f"Where the pictures go (default: {FOLDER}).",
    )
    @click.option(
        "--zoom",
        type=click.IntRange(1, 64),
        default=ZOOM,
        metavar="N",
        help=f"Enlarge each pixel N times (default: {ZOOM}; a GIF is enlarged to "
        f"{GIF_SIZE} pixels at least).",
    )
    @click.option("--no-gif", is_flag=True, help="Write PNG files only.")
    @wraps(function)
    def with_files(out: Path, zoom: int, no_gif: bool, **others: Any) -> Any:
        return function(files=Files(out, zoom, no_gif), **others)

    return with_files


def write_as_asked(
    network: str, files: Files, schema: str, image_ids: list[int] | None = None
) -> tuple[list[Path], list[Drawing]]:
    """Write a network's pictures as the options say.

    Those of all images take the place of an earlier run's.
    """
    animated = not files.no_gif
    drawings = read_drawings(network, image_ids, way=animated, schema=schema)
    paths = write_pictures(
        network, drawings, files.out, zoom=files.zoom, animated=animated
    )
    if image_ids is None:
        remove_earlier(network, files.out, paths)
    return paths, drawings


@command(__doc__)
@click.argument("more_images", type=int, nargs=-1, metavar="[ID]...")
@click.option(
    "--image",
    "images",
    type=int,
    multiple=True,
    metavar="ID...",
    help="These images only (default: all that are finished).",
)
@click.option("--schema", help="Of the images (default: of the last run).")
@picture_options
def main(
    more_images: tuple[int, ...],
    images: tuple[int, ...],
    schema: str | None,
    network: str,
    files: Files,
) -> None:
    """Carry out the command line."""
    image_ids = [*images, *more_images] or None
    schema = schema or schema_of_last_run(network)
    show(*write_as_asked(network, files, schema, image_ids), sys.stdout)


# `--image 2 -5`: a number below zero is no option
main.context_settings["ignore_unknown_options"] = True
