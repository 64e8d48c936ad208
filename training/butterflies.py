"""Draw butterflies: the training set of the bundled diffusion twin.

Each is seen from above with its wings open, as a pinned specimen, on a plain
light background. A species gives colours and markings; shape, pose and shades
are drawn at random around it. The same seed and number give the same picture.

    python scripts/butterflies.py --count 64 --out sheet.png --seed 0

A wing is described in polar coordinates around its root: the outline is a
radius for each angle, and every marking is a rule on u, the distance from the
root as a share of that radius, and t, the angle as a share of the wing's span.
"""

import colorsys
from pathlib import Path

import click
import numpy as np
from PIL import Image

from dbt_nn.cli import command

SIZE = 32
SUPERSAMPLING = 5  # a side

INK = (0.09, 0.07, 0.07)
BROWN = (0.24, 0.14, 0.09)
WHITE = (0.97, 0.96, 0.92)
CREAM = (0.98, 0.90, 0.62)
YELLOW = (0.98, 0.82, 0.12)
ORANGE = (0.95, 0.47, 0.06)
RED = (0.85, 0.13, 0.08)
BLUE = (0.10, 0.36, 0.92)
SKY = (0.42, 0.66, 0.95)
TEAL = (0.10, 0.75, 0.68)
VIOLET = (0.42, 0.18, 0.72)

# root, edge: the colours between which a wing shades from root to edge
# border: (colour, width as a share of the radius); dots: on that border
# band: (colour, width), across both wings; apex: the tip of the forewing
# eyes: (rings from outside in, radius, on forewing, on hindwing)
# tail: chance of a swallow's tail; shape: angular, round or long
SPECIES = {
    "monarch": {
        "root": ORANGE,
        "edge": (0.90, 0.36, 0.03),
        "border": (INK, 0.19),
        "dots": WHITE,
        "veins": 0.9,
        "shape": "long",
    },
    "morpho": {
        "root": (0.14, 0.55, 0.98),
        "edge": BLUE,
        "border": (INK, 0.15),
        "shape": "round",
    },
    "brimstone": {
        "root": YELLOW,
        "edge": (0.93, 0.85, 0.20),
        "border": ((0.62, 0.48, 0.05), 0.06),
        "eyes": ((ORANGE, RED), 0.09, True, True),
        "shape": "angular",
    },
    "clouded yellow": {
        "root": (0.98, 0.66, 0.10),
        "edge": YELLOW,
        "border": (INK, 0.20),
        "shape": "round",
    },
    "orange tip": {
        "root": (0.80, 0.84, 0.82),
        "edge": (0.90, 0.92, 0.84),
        "border": (BROWN, 0.09),
        "apex": ORANGE,
        "shape": "round",
    },
    "cabbage white": {
        "root": (0.74, 0.78, 0.72),
        "edge": (0.93, 0.91, 0.74),
        "border": ((0.35, 0.33, 0.30), 0.08),
        "apex": INK,
        "eyes": ((INK,), 0.09, True, False),
        "shape": "round",
    },
    "peacock": {
        "root": (0.62, 0.16, 0.08),
        "edge": (0.80, 0.22, 0.08),
        "border": (BROWN, 0.13),
        "eyes": ((CREAM, INK, SKY), 0.20, True, True),
        "shape": "angular",
    },
    "buckeye": {
        "root": (0.55, 0.38, 0.22),
        "edge": (0.66, 0.46, 0.26),
        "border": (BROWN, 0.12),
        "band": (CREAM, 0.07),
        "eyes": ((ORANGE, INK, VIOLET), 0.17, True, True),
        "shape": "round",
    },
    "birdwing": {
        "root": (0.10, 0.50, 0.18),
        "edge": (0.28, 0.82, 0.30),
        "border": (INK, 0.18),
        "veins": 0.7,
        "shape": "long",
    },
    "tiger swallowtail": {
        "root": YELLOW,
        "edge": (0.99, 0.88, 0.30),
        "border": (INK, 0.19),
        "dots": YELLOW,
        "stripes": INK,
        "tail": 1.0,
        "shape": "angular",
    },
    "blue swallowtail": {
        "root": INK,
        "edge": (0.08, 0.30, 0.62),
        "border": (INK, 0.10),
        "band": (TEAL, 0.15),
        "tail": 0.8,
        "shape": "angular",
    },
    "red admiral": {
        "root": BROWN,
        "edge": INK,
        "border": (INK, 0.06),
        "band": (RED, 0.15),
        "apex": INK,
        "dots": WHITE,
        "shape": "angular",
    },
    "postman": {
        "root": INK,
        "edge": INK,
        "border": (INK, 0.08),
        "band": ((0.92, 0.16, 0.16), 0.19),
        "shape": "long",
    },
    "common blue": {
        "root": (0.36, 0.48, 0.92),
        "edge": SKY,
        "border": ((0.22, 0.24, 0.36), 0.11),
        "shape": "round",
    },
    "emperor": {
        "root": (0.30, 0.12, 0.55),
        "edge": (0.52, 0.26, 0.86),
        "border": (INK, 0.13),
        "band": (WHITE, 0.07),
        "shape": "angular",
    },
    "emerald": {
        "root": (0.08, 0.55, 0.50),
        "edge": (0.16, 0.80, 0.56),
        "border": (INK, 0.16),
        "tail": 0.5,
        "shape": "angular",
    },
    "fritillary": {
        "root": (0.80, 0.40, 0.08),
        "edge": (0.97, 0.58, 0.16),
        "border": (BROWN, 0.11),
        "spots": INK,
        "shape": "round",
    },
    "apollo": {
        "root": (0.80, 0.80, 0.76),
        "edge": (0.90, 0.89, 0.83),
        "border": ((0.40, 0.40, 0.42), 0.10),
        "eyes": ((INK, RED), 0.15, False, True),
        "spots": INK,
        "shape": "round",
    },
    "rose": {
        "root": (0.82, 0.18, 0.42),
        "edge": (0.96, 0.48, 0.60),
        "border": (INK, 0.15),
        "veins": 0.5,
        "shape": "long",
    },
}

# Angle in degrees (0 outwards, 90 ahead) and radius, from the trailing edge to
# the leading edge; then how far the outline is smoothed, in degrees.
FOREWINGS = {
    "angular": (
        [-24, -14, 2, 18, 36, 44, 52, 64],
        [0, 0.62, 0.78, 0.86, 1.10, 1.08, 0.86, 0],
        5,
    ),
    "round": (
        [-26, -16, 0, 18, 34, 46, 56, 68],
        [0, 0.60, 0.80, 0.93, 1.02, 1.00, 0.80, 0],
        8,
    ),
    "long": (
        [-20, -10, 2, 14, 26, 36, 46, 58],
        [0, 0.58, 0.76, 0.96, 1.18, 1.20, 0.92, 0],
        6,
    ),
}
HINDWINGS = {
    "angular": (
        [-92, -84, -68, -48, -24, 0, 16, 28],
        [0, 0.66, 0.86, 0.90, 0.84, 0.74, 0.58, 0],
        6,
    ),
    "round": (
        [-94, -86, -66, -44, -20, 2, 18, 30],
        [0, 0.62, 0.80, 0.86, 0.84, 0.74, 0.58, 0],
        9,
    ),
    "long": (
        [-92, -82, -62, -40, -18, 4, 18, 28],
        [0, 0.60, 0.76, 0.78, 0.76, 0.70, 0.54, 0],
        8,
    ),
}
ANGLES = np.arange(-130.0, 110.0)


def smoothstep(x, low, high):
    s = np.clip((x - low) / (high - low), 0, 1)
    return s * s * (3 - 2 * s)


def jitter(color, rng, amount=1.0):
    """A shade near the colour: hue, saturation and lightness moved a little."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*color)
    hue += amount * rng.normal(0, 0.012)
    lightness *= 1 + amount * rng.normal(0, 0.05)
    saturation *= 1 + amount * rng.normal(0, 0.06)
    shade = colorsys.hls_to_rgb(
        hue % 1, np.clip(lightness, 0, 1), np.clip(saturation, 0, 1)
    )
    return np.array(shade)


class Outline:
    """A radius for each angle around the root of a wing."""

    def __init__(self, root, controls, rng, turn, tail=0.0):
        angles, radii, smoothing = controls
        angles = np.array(angles) + turn
        radii = np.array(radii) * rng.normal(1, 0.035, len(radii))
        table = np.interp(ANGLES, angles, radii)
        kernel = np.exp(-0.5 * (np.arange(-24, 25) / (smoothing / 2)) ** 2)
        table = np.convolve(table, kernel / kernel.sum(), mode="same")
        lobes = rng.uniform(0, 0.025)
        table *= 1 + lobes * np.cos(np.radians(ANGLES) * rng.integers(14, 22))
        if tail:
            at = rng.uniform(-74, -64) + turn
            table += tail * np.exp(-0.5 * ((ANGLES - at) / 5.0) ** 2)
        self.angles, self.radii, self.root = angles, table, root
        self.x = root[0] + table * np.cos(np.radians(ANGLES))
        self.y = root[1] + table * np.sin(np.radians(ANGLES))


class Wing:
    """The fields u and t of a wing over the pixels, and a canvas to paint."""

    def __init__(self, x, y, outline):
        self.angles, self.radii = outline.angles, outline.radii
        self.x, self.y = x - outline.root[0], y - outline.root[1]
        self.r = np.hypot(self.x, self.y)
        theta = np.degrees(np.arctan2(self.y, self.x))
        self.theta = np.where(theta > 150, theta - 360, theta)
        radius = np.interp(self.theta, ANGLES, self.radii, left=0, right=0)
        self.u = self.r / np.maximum(radius, 1e-3)
        first, last = self.angles[0], self.angles[-1]
        self.t = (self.theta - first) / (last - first)
        self.inside = self.u < 1
        self.color = np.zeros((*x.shape, 3))

    def paint(self, color, alpha):
        alpha = np.asarray(alpha, dtype=float)[..., None]
        self.color += alpha * (color - self.color)

    def point(self, t, u):
        """Where u and t meet, as x and y from the root."""
        angle = self.angles[0] + t * (self.angles[-1] - self.angles[0])
        radius = u * np.interp(angle, ANGLES, self.radii)
        return radius * np.cos(np.radians(angle)), radius * np.sin(np.radians(angle))

    def disc(self, color, t, u, size):
        x, y = self.point(t, u)
        self.paint(color, np.hypot(self.x - x, self.y - y) < size)


def paint_wing(wing, species, is_fore, common):
    """All markings of one pair of wings, from the ground up."""
    u, t, r = wing.u, wing.t, wing.r
    wing.paint(common["root"], np.ones_like(u))
    wing.paint(common["edge"], smoothstep(u, 0.15, 0.9))
    if "band" in species:
        width = common["band_width"] * (1.0 if is_fore else 0.9)
        middle = common["band_at"] + (0.10 if is_fore else -0.05) * (t - 0.5)
        wing.paint(common["band"], np.abs(u - middle) < width)
    if "stripes" in species and is_fore:
        for at in (0.30, 0.56):
            stripe = (np.abs(u - at) < 0.055) & (t > 0.42)
            wing.paint(common["stripes"], stripe)
    if "apex" in species and is_fore:
        patch = (u > common["apex_at"]) & (t > 0.52)
        wing.paint(common["apex"], patch)
    if common["veins"] > 0:
        for at in (0.22, 0.42, 0.62, 0.80):
            across = r * np.abs(
                np.radians(wing.theta - wing.angles[0])
                - at * np.radians(wing.angles[-1] - wing.angles[0])
            )
            vein = (across < common["vein_width"]) & (u > 0.18)
            wing.paint(common["border"], common["veins"] * vein)
    if "spots" in species:
        count = 4 if is_fore else 3
        for at in (np.arange(count) + 0.5) / count:
            for u_at in (0.45, 0.70):
                wing.disc(common["spots"], 0.15 + 0.7 * at, u_at, common["spot"])
    width = common["border_width"] * (1 + 0.12 * np.cos(40 * np.radians(wing.theta)))
    wing.paint(common["border"], u > 1 - width)
    if is_fore:  # the leading edge, which carries the wing
        edge = r * np.radians(np.maximum(wing.angles[-1] - 7 - wing.theta, 0))
        wing.paint(common["border"], edge < 0.035 + 0.2 * common["border_width"])
    if "dots" in species:
        for at in np.linspace(0.25, 0.75, 4):
            middle = 1 - 0.5 * max(common["border_width"], 0.16)
            wing.disc(common["dots"], at, middle, common["dot"])
    if "eyes" in species:
        _, size, on_fore, on_hind = species["eyes"]
        if on_fore if is_fore else on_hind:
            at, u_at = (0.66, 0.62) if is_fore else (0.50, 0.58)
            rings = common["eyes"]
            for k, ring in enumerate(rings):
                share = 1 - k / len(rings)
                wing.disc(ring, at, u_at, size * common["eye"] * share)


def _colors(spec, rng):
    """The colours and proportions of one butterfly, each a little off its species'."""

    def shade(key, fallback=INK):
        color = spec.get(key, fallback)
        return jitter(color, rng)

    border_color, border_width = spec["border"]
    band_color, band_width = spec.get("band", (INK, 0.1))
    return {
        "root": shade("root"),
        "edge": shade("edge"),
        "border": jitter(border_color, rng),
        "border_width": border_width * rng.uniform(0.85, 1.2),
        "band": jitter(band_color, rng),
        "band_width": band_width * rng.uniform(0.85, 1.2),
        "band_at": rng.uniform(0.52, 0.64),
        "apex": shade("apex"),
        "apex_at": rng.uniform(0.60, 0.70),
        "veins": spec.get("veins", 0) * rng.uniform(0.7, 1.0),
        "vein_width": rng.uniform(0.018, 0.028),
        "stripes": shade("stripes"),
        "spots": shade("spots"),
        "spot": rng.uniform(0.045, 0.06),
        "dots": shade("dots"),
        "dot": rng.uniform(0.04, 0.052),
        "eyes": [jitter(c, rng, 0.5) for c in spec.get("eyes", ((),))[0]],
        "eye": rng.uniform(0.9, 1.15),
    }


def _paint_body(picture, x, y, rng):
    """Paint body and antennae; x and y are the pixels in the butterfly's frame."""
    body = jitter(INK if rng.random() < 0.7 else BROWN, rng)
    reach, height = rng.uniform(0.16, 0.34), rng.uniform(0.5, 0.62)
    s = np.clip((y - 0.2) / height, 0, 1)
    antenna = np.abs(x - 0.02 - reach * s**1.3) < 0.022
    antenna &= (y > 0.2) & (y < 0.2 + height)
    club = np.hypot(x - 0.02 - reach, y - 0.2 - height) < 0.045
    picture[antenna | club] = body
    length = rng.uniform(0.42, 0.56)
    thick = rng.uniform(0.06, 0.08)
    abdomen = (x / thick) ** 2 + ((y + length / 2) / (length / 2 + 0.08)) ** 2 < 1
    thorax = (x / (thick * 1.35)) ** 2 + ((y - 0.06) / 0.17) ** 2 < 1
    head = np.hypot(x, y - 0.25) < thick * 1.05
    picture[abdomen | thorax | head] = body


def draw(rng, size=SIZE, species=None):
    """One butterfly: an array [size, size, 3] of bytes."""
    name = species or rng.choice(list(SPECIES))
    spec = SPECIES[name]
    n = size * SUPERSAMPLING
    background = np.array(
        colorsys.hls_to_rgb(rng.uniform(0, 1), rng.uniform(0.95, 1.0), 0.25)
    )

    common = _colors(spec, rng)
    shape = spec["shape"]
    if rng.random() < 0.25:
        shape = rng.choice(list(FOREWINGS))
    fore, hind = FOREWINGS[shape], HINDWINGS[shape]
    tail = rng.uniform(0.25, 0.4) if rng.random() < spec.get("tail", 0) else 0
    outlines = [
        Outline((0.02, -0.03), hind, rng, rng.normal(0, 4), tail),
        Outline((0.02, 0.05), fore, rng, rng.normal(2, 4)),
    ]
    turn = np.radians(np.clip(rng.normal(0, 3.5), -9, 9))

    # Half width and half height; the picture is filled in both, as far as
    # that does not stretch the wings too much.
    top = max(outline.y.max() for outline in outlines)
    bottom = min(outline.y.min() for outline in outlines)
    half = np.array([max(o.x.max() for o in outlines), (top - bottom) / 2])
    lean = abs(np.sin(turn))
    half = half + lean * 0.75 * half[::-1]
    scale = rng.uniform([0.90, 0.82], [0.97, 0.93]) / half
    scale = np.minimum(scale, scale[::-1] * [1.15, 1.2])

    # Pixels in the butterfly's frame: x to the side, y ahead.
    grid = (np.arange(n) + 0.5) / n * 2 - 1
    px, py = np.meshgrid(grid, -grid)
    x = (px * np.cos(turn) - py * np.sin(turn)) / scale[0]
    y = (px * np.sin(turn) + py * np.cos(turn)) / scale[1]
    x += rng.normal(0, 0.015)
    y += (top + bottom) / 2
    # Seen a little from one side, one pair of wings is narrower.
    yaw = rng.normal(0, 0.03)
    x = np.abs(x) * np.where(x > 0, 1 + yaw, 1 - yaw)

    picture = np.broadcast_to(background, (n, n, 3)).copy()
    wings = [Wing(x, y, outline) for outline in outlines]
    for is_fore, wing in enumerate(wings):
        paint_wing(wing, spec, bool(is_fore), common)
        picture[wing.inside] = wing.color[wing.inside]

    _paint_body(picture, x, y, rng)
    picture = picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
    picture = picture.mean(axis=(1, 3))
    return np.uint8(np.clip(picture, 0, 1) * 255 + 0.5)


def butterflies(count, seed=0, start=0, size=SIZE):
    """Pictures `start` to `start + count` of a seed: [count, size, size, 3]."""
    pictures = [
        draw(np.random.default_rng((seed, number)), size)
        for number in range(start, start + count)
    ]
    return np.stack(pictures)


def contact_sheet(pictures, columns=8, zoom=1, gap=2):
    """The pictures in rows, on grey."""
    count, size = pictures.shape[:2]
    rows = -(-count // columns)
    cell = size * zoom + gap
    sheet = Image.new("RGB", (columns * cell + gap, rows * cell + gap), "#888")
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture).resize(
            (size * zoom, size * zoom), Image.Resampling.NEAREST
        )
        sheet.paste(tile, (gap + i % columns * cell, gap + i // columns * cell))
    return sheet


@command(__doc__)
@click.option("--count", default=64)
@click.option("--out", type=click.Path(path_type=Path), default="butterflies.png")
@click.option("--seed", default=0)
@click.option("--columns", default=8)
@click.option("--zoom", default=4, help="Pixels a pixel.")
def main(count: int, out: Path, seed: int, columns: int, zoom: int) -> None:
    """Carry out the command line."""
    contact_sheet(butterflies(count, seed), columns, zoom).save(out)
