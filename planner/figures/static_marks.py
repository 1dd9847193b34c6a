"""What figures are made of, drawn by matplotlib from plotly's description: lines, markers, bars, heat maps, names."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Transform

from planner.contracts.errors import UsageError
from planner.figures.style import PALETTE

PT_PER_PX = 0.72  # at 100 pixels an inch
Spec: TypeAlias = Mapping[str, Any]  # a part of a figure, as plotly writes it in JSON
Rgba = tuple[float, float, float, float]

_DASHES = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 2)), "dashdot": "-."}
_STEPS = {"linear": "default", "hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}
_SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "cross": "P",
    "x": "X",
    "star": "*",
    "line-ns": "|",
    "line-ew": "_",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "hexagon": "h",
    "pentagon": "p",
}
_HATCHES = {"/": "////", "\\": "\\\\\\\\", "x": "xxxx", ".": "...", "-": "----", "|": "||||", "+": "++++"}
_ANCHORS = {"top": "top", "bottom": "bottom", "middle": "center", "left": "left", "right": "right", "center": "center"}
_TAG = re.compile(r"<[^>]*>")
_RGBA = re.compile(r"rgba?\(([^)]*)\)")


@dataclass(slots=True, kw_only=True)
class Panel:
    """A pair of axes, what they measure, and what has been drawn so far."""

    axes: Axes
    x_axis: Spec
    y_axis: Spec
    barmode: str
    bargap: float
    x_names: list[str] = field(default_factory=list)
    y_names: list[str] = field(default_factory=list)
    piled: dict[float, float] = field(default_factory=dict)  # how far stacked bars reach, by their place
    heat: tuple[Spec, ScalarMappable] | None = None  # its colour bar, and what it explains
    inside: list[tuple[Text, Artist]] = field(default_factory=list)  # texts that go where their bar has no room

    def xs(self, values: Sequence[object]) -> list[float]:
        """Places on the x axis; a name's is its rank, and what is missing has none."""
        return _places(values, self.x_names)

    def ys(self, values: Sequence[object]) -> list[float]:
        """Places on the y axis."""
        return _places(values, self.y_names)


def draw_trace(panel: Panel, trace: Spec, index: int) -> Artist | None:
    """Draw one trace; what stands for it in a legend. Raises: UsageError for a kind that nothing here draws."""
    match trace.get("type", "scatter"):
        case "scatter":
            return _scatter(panel, trace, PALETTE[index % len(PALETTE)])
        case "bar":
            return _bars(panel, trace, PALETTE[index % len(PALETTE)])
        case "heatmap":
            return _heat(panel, trace)
    raise _not_drawn(f"a trace of type {trace['type']}")


def written(text: str) -> str:
    """Plotly's text without its HTML."""
    return html.unescape(_TAG.sub("", text.replace("<br>", "\n")))


def colour_of(text: str) -> Rgba:
    """Red, green, blue and opacity from 0 to 1."""
    found = _RGBA.fullmatch(text.replace(" ", ""))
    if found is None:
        return to_rgba(text)
    numbers = [float(number) for number in found.group(1).split(",")]
    red, green, blue = (number / 255 for number in numbers[:3])
    return red, green, blue, numbers[3] if len(numbers) > 3 else 1.0


def draw_shape(axes: Axes, shape: Spec, place: Transform, ink: str) -> None:
    """A line across the panels. Raises: UsageError for another shape."""
    if shape.get("type") != "line":
        raise _not_drawn(f"a shape of type {shape.get('type')}")
    line = shape.get("line", {})
    axes.plot(
        [shape["x0"], shape["x1"]],
        [shape["y0"], shape["y1"]],
        transform=place,
        color=colour_of(line.get("color", ink)),
        linewidth=line.get("width", 2) * PT_PER_PX,
        linestyle=_DASHES[line.get("dash", "solid")],
        clip_on=False,
        scalex=False,
        scaley=False,
    )


def draw_annotation(axes: Axes, note: Spec, place: Transform, is_log: tuple[bool, bool]) -> None:
    """A text; `is_log` says of x and y whether plotly counts its place in powers of ten."""
    x, y = (10.0 ** note[name] if log else note[name] for name, log in zip("xy", is_log, strict=True))
    font, background = note.get("font", {}), note.get("bgcolor")
    axes.annotate(
        written(note["text"]),
        (x, y),
        xycoords=place,
        xytext=(note.get("xshift", 0) * PT_PER_PX, note.get("yshift", 0) * PT_PER_PX),
        textcoords="offset points",
        rotation=-note.get("textangle", 0),
        ha=_ANCHORS[note.get("xanchor", "center")],
        va=_ANCHORS[note.get("yanchor", "middle")],
        color=None if "color" not in font else colour_of(font["color"]),
        fontsize=font.get("size", 12) * PT_PER_PX,
        fontweight="bold" if note["text"].startswith("<b>") else "normal",
        bbox=None
        if background is None
        else {"facecolor": colour_of(background), "edgecolor": "none", "boxstyle": "square,pad=0.3"},
    )


def _places(values: Sequence[object], names: list[str]) -> list[float]:
    found = []
    for value in values:
        if isinstance(value, str):
            if value not in names:
                names.append(value)
            found.append(float(names.index(value)))
        else:
            found.append(math.nan if value is None else float(value))  # type: ignore[arg-type]
    return found


def _scatter(panel: Panel, trace: Spec, default: str) -> Artist | None:
    xs, ys = panel.xs(trace.get("x", ())), panel.ys(trace.get("y", ()))
    mode, line = trace.get("mode", "lines"), trace.get("line", {})
    colour = colour_of(line.get("color", default))
    handle: Artist | None = None
    if trace.get("fill") == "toself" and xs:
        (handle,) = panel.axes.fill(xs, ys, facecolor=colour_of(trace["fillcolor"]), linewidth=0)
    elif trace.get("fill", "none") != "none" and trace.get("fill") != "toself":
        raise _not_drawn(f"a fill {trace['fill']}")
    if "lines" in mode and line.get("width", 2) > 0:
        (handle,) = panel.axes.plot(
            xs,
            ys,
            color=colour,
            linewidth=line.get("width", 2) * PT_PER_PX,
            linestyle=_DASHES[line.get("dash", "solid")],
            drawstyle=_STEPS[line.get("shape", "linear")],
            solid_capstyle="butt",
        )
    if "markers" in mode:
        markers = _markers(panel, trace.get("marker", {}), xs, ys, line.get("color", default))
        handle = markers if handle is None else handle
    if "text" in mode:
        _texts(panel, trace, xs, ys)
    _intervals(panel, trace, xs, ys)
    return handle


def _markers(panel: Panel, marker: Spec, xs: Sequence[float], ys: Sequence[float], default: str) -> Artist:
    symbol = marker.get("symbol", "circle")
    name = symbol.removesuffix("-open")
    if name not in _SYMBOLS:
        raise _not_drawn(f"a marker {symbol}")
    edge, colour = marker.get("line", {}), colour_of(marker.get("color", default))
    is_open, is_stroke = symbol.endswith("-open"), _SYMBOLS[name] in "|_"
    edge_colour = colour if is_open else colour_of(edge.get("color", "rgba(0,0,0,0)"))
    return panel.axes.scatter(
        xs,
        ys,
        s=(marker.get("size", 6) * PT_PER_PX) ** 2,
        marker=_SYMBOLS[name],
        facecolors="none" if is_open and not is_stroke else [colour],
        edgecolors=None if is_stroke else [edge_colour],
        linewidths=max(edge.get("width", 0), 1.5 * is_open) * PT_PER_PX,
        alpha=marker.get("opacity"),
        zorder=3,
        clip_on=False,
    )


def _texts(panel: Panel, trace: Spec, xs: Sequence[float], ys: Sequence[float]) -> None:
    upright, _, flat = trace.get("textposition", "middle center").partition(" ")
    font = trace.get("textfont", {})
    for x, y, text in zip(xs, ys, trace.get("text", ()), strict=True):
        panel.axes.annotate(
            written(text),
            (x, y),
            xytext=({"left": -6, "right": 6}.get(flat, 0), {"top": 7, "bottom": -7}.get(upright, 0)),
            textcoords="offset points",
            ha={"left": "right", "right": "left"}.get(flat, "center"),
            va={"top": "bottom", "bottom": "top"}.get(upright, "center"),
            color=None if "color" not in font else colour_of(font["color"]),
            fontsize=font.get("size", 12) * PT_PER_PX,
        )


def _bars(panel: Panel, trace: Spec, default: str) -> Artist | None:
    is_flat = trace.get("orientation") == "h"
    along, across = ("x", "y") if is_flat else ("y", "x")
    places = (panel.ys if is_flat else panel.xs)(trace.get(across, ()))
    lengths = (panel.xs if is_flat else panel.ys)(trace.get(along, ()))
    if not places:
        return None
    starts = [float(start) for start in trace.get("base") or ()] or [0.0] * len(places)
    if panel.barmode == "stack":
        starts = [panel.piled.get(place, 0.0) for place in places]
        panel.piled |= {place: start + length for place, start, length in zip(places, starts, lengths, strict=True)}
    marker, edge = trace.get("marker", {}), trace.get("marker", {}).get("line", {})
    pattern = marker.get("pattern", {})
    colours = marker.get("color", pattern.get("bgcolor", default))
    face = [colour_of(colour) for colour in ([colours] if isinstance(colours, str) else colours)]
    draw = panel.axes.barh if is_flat else panel.axes.bar
    drawn = draw(
        places,
        lengths,
        trace.get("width", 1 - panel.bargap),
        starts,
        color=face,
        edgecolor=colour_of(edge.get("color", pattern.get("fgcolor", "rgba(0,0,0,0)"))),
        linewidth=edge.get("width", 0) * PT_PER_PX,
        hatch=_HATCHES[pattern["shape"]] if pattern.get("shape") else None,
    )
    _bar_texts(panel, trace, drawn.patches)
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    _intervals(panel, trace, ends if is_flat else places, places if is_flat else ends)
    handle: Artist = drawn.patches[0]
    return handle


def _bar_texts(panel: Panel, trace: Spec, bars: Sequence[Rectangle]) -> None:
    """What stands in each bar, in its middle or at its start, or behind its end."""
    is_flat, is_inside = trace.get("orientation") == "h", trace.get("textposition") == "inside"
    share = {"start": 0.0, "middle": 0.5}[trace.get("insidetextanchor", "middle")] if is_inside else 1.0
    is_middle, own = share == 0.5, trace.get("insidetextfont", {}).get("color")
    for bar, text in zip(bars, trace.get("text") or (), strict=False):
        across, up = (share, 0.5) if is_flat else (0.5, share)
        kept = panel.axes.annotate(
            written(text) if is_middle else f" {written(text)}",
            (bar.get_x() + across * bar.get_width(), bar.get_y() + up * bar.get_height()),
            ha="left" if is_flat and not is_middle else "center",
            va="center" if is_flat or is_middle else "bottom",
            color=(own or _legible(bar.get_facecolor())) if is_inside else None,
            fontsize=11 * PT_PER_PX,
            zorder=4,
        )
        if is_inside:
            panel.inside.append((kept, bar))


def _intervals(panel: Panel, trace: Spec, xs: Sequence[float], ys: Sequence[float]) -> None:
    for name in ("error_x", "error_y"):
        error = trace.get(name) or {}
        if not error.get("array"):
            continue
        high = [math.nan if size is None else float(size) for size in error["array"]]
        low = [math.nan if size is None else float(size) for size in error.get("arrayminus") or error["array"]]
        panel.axes.errorbar(
            xs,
            ys,
            xerr=[low, high] if name == "error_x" else None,
            yerr=[low, high] if name == "error_y" else None,
            fmt="none",
            ecolor=colour_of(error["color"]) if "color" in error else None,
            elinewidth=error.get("thickness", 2) * PT_PER_PX,
            capsize=error.get("width", 4) * PT_PER_PX,
        )


def _heat(panel: Panel, trace: Spec) -> Artist:
    scale = LinearSegmentedColormap.from_list(
        "scale", [(place, to_rgba(colour)) for place, colour in trace["colorscale"]]
    )
    rows = [[math.nan if value is None else value for value in row] for row in trace["z"]]
    heat = panel.axes.pcolormesh(
        panel.xs(trace["x"]), panel.ys(trace["y"]), rows, cmap=scale, shading="auto", edgecolors="face", linewidth=0.4
    )
    panel.heat = trace["colorbar"], heat
    return heat


def _legible(background: Rgba) -> str:
    """Black or white, whichever stands out from the background."""
    red, green, blue, opacity = background
    brightness = (0.299 * red + 0.587 * green + 0.114 * blue) * opacity + (1 - opacity)
    return "#1a1a1a" if brightness > 0.55 else "#ffffff"


def _not_drawn(what: str) -> UsageError:
    return UsageError(
        f"{what} cannot be drawn without a browser",
        why="the static pictures cover what the figures of planner.figures are made of",
        remedy="figure.write_html, or draw it with a line, a bar or a heat map",
    )
