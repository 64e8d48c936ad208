"""The map of a network: an SVG of all its models, block by block, for the docs site.

A panel is a part of the network, a row in it a module like `resnets.0`, and a box a
model, in the colour that it has in the lineage. Boxes that touch do not read each
other; an arrow leads to those that read them. In a network that goes down and up
again, like a UNet, the way down is on the left and the way up on the right, from the
bottom; lines between them are skip connections.

In the docs site a box leads to its model's page, and the name of a block or of a row
to its lineage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from dbt_nn.networks.graph import INSIGHT, Drawn, Network, Part

# points
FONT = 11
CHARACTER = 6.3  # of the font, on average
BOLD = 7  # of its bold one
BOX = 20  # height
ROW = 27
GAP = 16  # for an arrow
PAD = 8  # in a box and a panel
HEADING = 20  # of a panel with several rows
BETWEEN = 12  # panels
GUTTER = 90  # between the ways down and up
LABEL = 90  # of a row
MARGIN = 16
LEGEND = {
    "#b7950b": "embedding, timestep",
    "#95a5a6": "norm",
    "#3498db": "projection of attention",
    "#e67e22": "attention",
    "#9b59b6": "MLP, convolution",
    "#7f8c8d": "joined, resized",
    "#0094b3": "input, output",
    "#16a085": "insight",
}
NEXT = "next step"
# Opened as a file, the site is dbt's static page.
SCRIPT = """<script>
if (location.protocol === "file:")
  for (const link of document.querySelectorAll("a")) {
    const address = link.getAttribute("href");
    link.setAttribute("href", address.replace("index", "static_index"));
  }
</script>"""
# a box's text is white on these, dark on the others
DARK = ("#3498db", "#9b59b6", "#7f8c8d", "#0094b3", "#16a085")
STYLE = f"""<style>
text {{ font: {FONT}px Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #2c3e50; }}
.box text {{ fill: #17202a; text-anchor: middle; }}
.dark text {{ fill: white; }}
.name {{ font-weight: bold; }}
.row {{ font-size: {FONT - 1}px; fill: #5d6d7e; }}
.panel {{ fill: #f4f6f7; stroke: #d5dbdb; }}
.flow {{ stroke: #5d6d7e; fill: none; marker-end: url(#head); }}
.skip {{ stroke: #aab7b8; fill: none; marker-end: url(#end); }}
.loop {{ stroke: #0094b3; stroke-dasharray: 5 3; }}
a:hover text {{ text-decoration: underline; }}
</style>
<defs>
<marker id="head" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6"
 orient="auto"><path d="M0 0L6 3L0 6z" fill="#5d6d7e"/></marker>
<marker id="end" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6"
 orient="auto"><path d="M0 0L6 3L0 6z" fill="#aab7b8"/></marker>
</defs>"""


# --- What is drawn ------------------------------------------------------------


@dataclass
class Row:
    """The models of a module, or of a whole block."""

    name: str
    cells: list[list[Drawn]]
    labels: dict[str, str]

    @property
    def models(self) -> list[Drawn]:
        """All of them, in order."""
        return [model for cell in self.cells for model in cell]

    def width(self, model: Drawn) -> float:
        """Of its box."""
        return round(len(self.labels[model.layer.model]) * CHARACTER + PAD * 1.5, 1)

    @property
    def total(self) -> float:
        """The width of all boxes and arrows."""
        gaps = GAP * (len(self.cells) - 1)
        return sum(self.width(model) for model in self.models) + gaps


@dataclass
class Panel:
    """A part of the network and its rows."""

    part: Part
    rows: list[Row]

    @property
    def name(self) -> str:
        """What its heading says."""
        return self.part.path


def module_of(part: Part, path: str) -> tuple[str, str]:
    """The module in the part that a layer is of, and the layer's path in that.

    Modules are counted: resnets.0.conv1 is of resnets.0.
    """
    inner = path.removeprefix(f"{part.path}.")
    words = inner.split(".")
    for place, word in enumerate(words):
        if word.isdigit() and place:
            module = ".".join(words[: place + 1])
            rest = inner.removeprefix(module).strip(".")
            return module, rest or words[place - 1].removesuffix("s")
    return "", inner


def rows_of(part: Part, models: list[Drawn]) -> list[Row]:
    """The rows of a panel, one for each module."""
    rows: dict[str, dict[str, Drawn]] = {}
    for model in models:
        module, inner = module_of(part, model.layer.path)
        rows.setdefault(module, {})[inner] = model
    return [
        Row(
            name,
            cells_of([*row.values()]),
            {model.layer.model: shortest(inner, row) for inner, model in row.items()},
        )
        for name, row in rows.items()
    ]


def shortest(path: str, others: dict[str, Drawn]) -> str:
    """The end of a path that no other has: the shortest."""
    words = path.split(".")
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        same = [o for o in others if o == end or o.endswith(f".{end}")]
        if not words[-count].isdigit() and len(same) == 1:
            return end
    return path


def cells_of(models: list[Drawn]) -> list[list[Drawn]]:
    """Models side by side that do not read each other, in the order of computation."""
    cells: list[list[Drawn]] = []
    for model in models:
        read = {layer.model for layer in model.inputs}
        if cells and not read & {other.layer.model for other in cells[-1]}:
            cells[-1].append(model)
        else:
            cells.append([model])
    return cells


# --- Links --------------------------------------------------------------------


def link(address: str, title: str, content: str, kind: str = "") -> str:
    """A link into the docs site."""
    return (
        f'<a class="{kind}" href="../index.html#!/{address}">'
        f"<title>{escape(title)}</title>{content}</a>"
    )


def lineage(selection: str) -> str:
    """The address of a view of the lineage graph."""
    return f"overview?g_v=1&amp;g_i={quote(selection)}"


# --- Drawing ------------------------------------------------------------------


class Map:
    """A network's map while it is drawn."""

    def __init__(self, network: Network):
        self.network = network
        self.panels = [
            Panel(part, rows_of(part, models))
            for part, models in network.parts
            if part.path != INSIGHT
        ]
        self.lines: list[str] = []
        self.edge = 0.0  # of the panels, on the right
        # model -> its box: left, right, middle
        self.places: dict[str, tuple[float, float, float]] = {}

    def draw(self) -> str:
        """The SVG."""
        sides = {panel.part.side for panel in self.panels}
        if sides == {""}:
            width, height = self.draw_column()
        else:
            width, height = self.draw_both_ways()
        height = self.draw_insight(height)
        height = self.draw_legend(height + BETWEEN, width)
        skips = [*self.skips()]
        title = f"The network {self.network.name}, layer by layer"
        size = f'width="{width:.0f}" height="{height:.0f}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} '
                f'viewBox="0 0 {width:.0f} {height:.0f}">',
                f"<title>{title}</title>",
                STYLE,
                f'<rect {size} fill="white"/>',
                *self.lines,
                *skips,
                SCRIPT,
                "</svg>\n",
            ]
        )

    # One panel below the other

    def draw_column(self) -> tuple[float, float]:
        """All panels in one column, each with its name at the left."""
        names = [len(panel.name) * BOLD + 2 * PAD for panel in self.panels]
        label = round(max(LABEL, *names))
        left = MARGIN + label
        inner = max(row.total for panel in self.panels for row in panel.rows)
        self.edge = left + inner + 2 * PAD
        width = self.edge + 2 * MARGIN
        y = MARGIN
        for number, panel in enumerate(self.panels):
            height = ROW * len(panel.rows) + PAD
            self.draw_panel(left - label, y, label + inner + 2 * PAD, height)
            self.draw_name(panel, left - label + PAD, y + height / 2 + 4)
            for place, row in enumerate(panel.rows):
                middle = y + PAD / 2 + ROW * (place + 0.5)
                self.draw_row(row, left + PAD, middle)
            if number:
                x = left + inner / 2
                self.flow(f"M{x:.0f} {y - BETWEEN:.0f}V{y:.0f}")
            y += height + BETWEEN
        self.draw_loop(self.edge)
        return width, y - BETWEEN + MARGIN

    # Down on the left and up on the right

    def draw_both_ways(self) -> tuple[float, float]:
        """The way down and the way up side by side, with what is between below."""
        down, middle, up = self.ways()
        inner = [
            max(row.total for panel in way for row in panel.rows) for way in (down, up)
        ]
        widths = [LABEL + size + 2 * PAD for size in inner]
        xs = [MARGIN, MARGIN + widths[0] + GUTTER]
        y = MARGIN
        for number, pair in enumerate(zip(down, reversed(up), strict=True)):
            heading = HEADING if any(panel.part.path for panel in pair) else PAD / 2
            height = heading + ROW * max(len(panel.rows) for panel in pair) + PAD / 2
            for side, panel in enumerate(pair):
                self.draw_panel(xs[side], y, widths[side], height)
                self.draw_rows(panel, xs[side], y + heading, widths[side], side == 1)
                if number:
                    x = xs[side] + (PAD * 2 if side == 0 else widths[side] - PAD * 2)
                    ends = (y - BETWEEN, y) if side == 0 else (y, y - BETWEEN)
                    self.flow(f"M{x:.0f} {ends[0]:.0f}V{ends[1]:.0f}")
            y += height + BETWEEN
        self.edge = xs[1] + widths[1]
        total = self.edge + MARGIN
        y = self.draw_middle(middle, y, total, xs, widths)
        self.draw_return(xs, widths)
        return total, y + MARGIN

    def ways(self) -> tuple[list[Panel], list[Panel], list[Panel]]:
        """The panels down, in the middle and up, each in the order of computation.

        What is of no side belongs to the way that it comes before or after.
        """
        sides = [panel.part.side for panel in self.panels]
        last_down = len(sides) - 1 - sides[::-1].index("left")
        first_up = sides.index("right")
        return (
            self.panels[: last_down + 1],
            self.panels[last_down + 1 : first_up],
            self.panels[first_up:],
        )

    def draw_middle(
        self,
        panels: list[Panel],
        y: float,
        total: float,
        xs: list[float],
        widths: list[float],
    ) -> float:
        """What is between the two ways; return where it ends."""
        for panel in panels:
            width = LABEL + max(row.total for row in panel.rows) + 2 * PAD
            x = (total - width) / 2
            height = HEADING + ROW * len(panel.rows) + PAD / 2
            self.draw_panel(x, y, width, height)
            self.draw_rows(panel, x, y + HEADING, width, False)
            middle = y + height / 2
            left, right = xs[0] + PAD * 2, xs[1] + widths[1] - PAD * 2
            self.flow(f"M{left:.0f} {y - BETWEEN:.0f}V{middle:.0f}H{x:.0f}")
            self.flow(f"M{x + width:.0f} {middle:.0f}H{right:.0f}V{y - BETWEEN:.0f}")
            y += height + BETWEEN
        return y - BETWEEN

    def draw_rows(
        self, panel: Panel, x: float, y: float, width: float, is_upward: bool
    ) -> None:
        """A panel's heading and rows, the first one at the bottom on the way up."""
        self.draw_name(panel, x + PAD, y - 6)
        rows = panel.rows[::-1] if is_upward else panel.rows
        for place, row in enumerate(rows):
            middle = y + ROW * (place + 0.5) - 2
            # names are outside, so that skip connections reach the boxes
            name_at = x + PAD if not is_upward else x + width - PAD
            self.draw_row_name(row, name_at, middle, "end" if is_upward else "start")
            self.draw_row(row, x + PAD + (0 if is_upward else LABEL), middle)

    # Parts

    def draw_panel(self, x: float, y: float, width: float, height: float) -> None:
        self.lines.append(
            f'<rect class="panel" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" rx="5"/>'
        )

    def draw_name(self, panel: Panel, x: float, y: float) -> None:
        """A block's name, which leads to its lineage."""
        part = panel.part
        if not part.path:
            return
        words = f'<text class="name" x="{x:.0f}" y="{y:.0f}">{part.path}</text>'
        of_all = ",".join([self.network.name, f"tag:{part.tag}"])
        title = f"Lineage of {part.path}: dbt ls --select {of_all}"
        self.lines.append(link(lineage(of_all), title, words))

    def draw_row_name(self, row: Row, x: float, y: float, anchor: str) -> None:
        """A module's name, which leads to its lineage, with what it reads."""
        if not row.name:
            return
        chosen = " ".join(f"1+{model.layer.model}" for model in row.models)
        words = (
            f'<text class="row" x="{x:.0f}" y="{y + 4:.0f}" text-anchor="{anchor}">'
            f"{row.name}</text>"
        )
        self.lines.append(link(lineage(chosen), f"Lineage of {row.name}", words))

    def draw_row(self, row: Row, x: float, middle: float) -> None:
        """A row's boxes from x on."""
        for number, cell in enumerate(row.cells):
            if number:
                self.flow(f"M{x:.1f} {middle:.1f}h{GAP}")
                x += GAP
            for model in cell:
                x = self.draw_box(row, model, x, middle)

    def draw_box(self, row: Row, model: Drawn, x: float, middle: float) -> float:
        """A model, which leads to its page; return where its box ends."""
        name, width = model.layer.model, row.width(model)
        self.places[name] = (x, x + width, middle)
        content = (
            f'<rect x="{x:.1f}" y="{middle - BOX / 2:.1f}" width="{width:.1f}" '
            f'height="{BOX}" rx="3" fill="{model.color}" stroke="white"/>'
            f'<text x="{x + width / 2:.1f}" y="{middle + 4:.1f}">'
            f"{row.labels[name]}</text>"
        )
        title = f"{name}: {model.description}"
        kind = "box dark" if model.color in DARK else "box"
        self.lines.append(link(f"model/model.dbt_nn.{name}", title, content, kind))
        return x + width

    def flow(self, path: str, kind: str = "") -> None:
        """An arrow."""
        self.lines.append(f'<path class="flow {kind}" d="{path}"/>')

    def skips(self) -> Iterator[str]:
        """Lines from layers of the way down to those of the way up that read them."""
        if all(not panel.part.side for panel in self.panels):
            return
        down, _, up = self.ways()
        origins = {model.layer.model for model in models_of(down)}
        for model in models_of([panel for panel in up if panel.part.tag != "output"]):
            for layer in model.inputs:
                # not the timestep, which every block reads
                if layer.model in origins and layer.is_of_places:
                    yield self.skip(layer.model, model.layer.model)

    def skip(self, origin: str, reader: str) -> str:
        """A line from the end of a layer's row to the layer that reads it."""
        x, y = self.places[origin][1:]
        end, _, to = self.places[reader]
        edge = end - GUTTER - PAD
        curve = (
            f"{edge + 45:.0f} {y:.0f} {end - 45:.0f} {to:.0f} {end - 2:.0f} {to:.0f}"
        )
        return f'<path class="skip" d="M{x:.0f} {y:.0f}H{edge:.0f}C{curve}"/>'

    def draw_loop(self, edge: float) -> None:
        """The loop, along the right edge of one column of panels."""
        origin, target = (self.places[self.network.model_name(n)] for n in self.loop)
        x = edge + MARGIN * 0.8
        self.flow(
            f"M{edge:.0f} {origin[2]:.0f}H{x:.0f}V{target[2]:.0f}H{edge:.0f}", "loop"
        )
        middle = (origin[2] + target[2]) / 2
        self.lines.append(
            f'<text transform="translate({x + 13:.0f} {middle:.0f}) rotate(-90)" '
            f'text-anchor="middle">{NEXT}</text>'
        )

    def draw_return(self, xs: list[float], widths: list[float]) -> None:
        """The loop, from the way up back to the way down."""
        _, target = (self.places[self.network.model_name(n)] for n in self.loop)
        y, right, left = target[2], xs[1], xs[0] + widths[0]
        self.flow(f"M{right:.0f} {y:.0f}H{left:.0f}", "loop")
        self.lines.append(
            f'<text x="{(left + right) / 2:.0f}" y="{y - 7:.0f}" '
            f'text-anchor="middle">{NEXT}</text>'
        )

    def draw_insight(self, y: float) -> float:
        """What looks inside the network, below it; return where it ends."""
        found = [models for part, models in self.network.parts if part.path == INSIGHT]
        if not found:
            return y
        [models] = found
        labels = {model.layer.model: model.layer.path for model in models}
        room = self.edge - MARGIN - LABEL - 2 * PAD
        rows = [Row("", [[]], labels)]
        for model in models:
            if rows[-1].models and rows[-1].total + rows[-1].width(model) > room:
                rows.append(Row("", [[]], labels))
            rows[-1].cells[0].append(model)
        height = ROW * len(rows) + PAD
        self.draw_panel(MARGIN, y, self.edge - MARGIN, height)
        name = f'<text class="name" x="{MARGIN + PAD}" y="{y + ROW / 2 + PAD:.0f}">'
        folder = f"{self.network.name}_{INSIGHT}"
        title = f"Lineage of {INSIGHT}: dbt ls --select {folder}"
        self.lines.append(link(lineage(folder), title, f"{name}{INSIGHT}</text>"))
        for place, row in enumerate(rows):
            middle = y + PAD / 2 + ROW * (place + 0.5)
            self.draw_row(row, MARGIN + LABEL + PAD, middle)
        return y + height + MARGIN

    @property
    def loop(self) -> tuple[str, str]:
        """The model that owns the loop, and what it appends to."""
        return self.network.loop

    def draw_legend(self, y: float, width: float) -> float:
        """What the colours that are there mean; return the height of the map."""
        x, drawn = MARGIN, "".join(self.lines)
        for color, words in LEGEND.items():
            if color not in drawn:
                continue
            size = 26 + len(words) * CHARACTER
            if x + size > width - MARGIN:
                x, y = MARGIN, y + ROW * 0.7
            self.lines.append(
                f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="12" height="12" rx="2" '
                f'fill="{color}"/><text x="{x + 17:.0f}" y="{y:.0f}">{words}</text>'
            )
            x += size + GAP
        return y + MARGIN


def models_of(panels: list[Panel]) -> Iterator[Drawn]:
    """All models of these panels."""
    return (model for panel in panels for row in panel.rows for model in row.models)


def draw_map(network: Network) -> str:
    """The map of a network, an SVG."""
    return Map(network).draw()
