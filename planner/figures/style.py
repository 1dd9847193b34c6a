"""How every figure looks: a palette that colour-blind people tell apart, a template, axes that start where they must.

Backgrounds are transparent, so that a figure takes the page's; `themed` fits ink and grid to a dark one. Names that
come out of files are escaped by `plain`: plotly reads a little HTML in every text.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import plotly.graph_objects as go

from planner.console import printable
from planner.contracts.timeline import TraceLane
from planner.drafting import DraftKind

Theme = Literal["light", "dark"]

# Okabe and Ito, "Color Universal Design", 2008; grey stands for their black, which a dark page would swallow.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, YELLOW, GREY)

KIND_COLOURS: dict[DraftKind, str] = {"none": GREY, "chain": BLUE, "ngram": ORANGE, "tree": GREEN, "hybrid": PURPLE}
KIND_NAMES: dict[DraftKind, str] = {
    "none": "no draft",
    "chain": "chain",
    "ngram": "n-grams",
    "tree": "tree",
    "hybrid": "hybrid",
}
LANE_COLOURS: dict[TraceLane, str] = {
    "disk": BLUE,
    "link": SKY,
    "compute": GREEN,
    "draft": PURPLE,
    "host": ORANGE,
}
LANE_NAMES: dict[TraceLane, str] = {
    "disk": "disk read",
    "link": "copy",
    "compute": "compute",
    "draft": "draft",
    "host": "host",
}
MUTED = "#767676"  # of texts that stand beside no colour: 4 to 1 against a white page and a dark one
IDLE_COLOUR = "rgba(140,140,140,0.18)"
IDLE_PATTERN = {"shape": "/", "fgcolor": "rgba(140,140,140,0.45)", "bgcolor": IDLE_COLOUR, "size": 6, "solidity": 0.2}

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INKS: dict[Theme, str] = {"light": "#24292f", "dark": "#d7dde5"}
_GRIDS: dict[Theme, str] = {"light": "rgba(36,41,47,0.12)", "dark": "rgba(215,221,229,0.16)"}
_HEIGHT = 340  # pixels
_NO_BUTTONS = ["zoom", "pan", "select2d", "lasso2d", "zoomin", "zoomout", "autoscale"]  # dragging still zooms


def _template(theme: Theme) -> go.layout.Template:
    ink, grid = INKS[theme], _GRIDS[theme]
    axis = {
        "gridcolor": grid,
        "zerolinecolor": grid,
        "linecolor": grid,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink},
            "title": {"font": {"size": 16}, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yanchor": "top"}
            | {"pad": {"t": 10, "l": 12}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(PALETTE),
            "margin": {"l": 12, "r": 16, "t": 74, "b": 12},
            "legend": {"orientation": "h", "traceorder": "normal", "x": 0, "xref": "container", "xanchor": "left"}
            | {"y": 0, "yref": "container", "yanchor": "bottom"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": ink, "remove": _NO_BUTTONS},
            "xaxis": axis,
            "yaxis": {**axis, "ticklabelstandoff": 6},
            "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
            "shapedefaults": {"line": {"color": ink}},
            "annotationdefaults": {"showarrow": False},
        }
    )


TEMPLATES: dict[Theme, go.layout.Template] = {theme: _template(theme) for theme in INKS}


def figure(
    traces: Sequence[Mapping[str, object]],
    *,
    title: str,
    subtitle: str = "",
    x_axis: Mapping[str, object],
    y_axis: Mapping[str, object],
    height: int = _HEIGHT,
    **layout: object,
) -> go.Figure:
    """A figure in the common style; traces and axes as plotly writes them, `height` in pixels."""
    return go.Figure(
        data=list(traces),
        layout={
            "template": TEMPLATES["light"],
            "title": {"text": title, "subtitle": {"text": subtitle, "font": {"size": 13}}},
            "xaxis": dict(x_axis),
            "yaxis": dict(y_axis),
            "height": height,
            **layout,
        },
    )


def themed(made: go.Figure, theme: Theme) -> go.Figure:
    """The figure with the ink and the grid of a theme; its data is the same."""
    return go.Figure(made).update_layout(template=TEMPLATES[theme])


def from_zero(title: str, **more: object) -> dict[str, object]:
    """An axis of a quantity that has a zero, which it shows."""
    return {"title": {"text": title}, "rangemode": "tozero", **more}


def logarithmic(title: str, low: float, high: float, **more: object) -> dict[str, object]:
    """An axis of memory or bandwidth, where a factor and not a difference is what counts, from `low` to `high`."""
    ticks = decimal_ticks(low, high)
    return {
        "title": {"text": title},
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
        **more,
    }


def decimal_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between two positive numbers; these themselves where that leaves fewer than two."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    within = [tick for tick in within if low <= tick <= high]
    return within if len(within) > 1 else [float(f"{end:.3g}") for end in dict.fromkeys((low, high))]


def rows(positions: Sequence[float], names: Sequence[str], **more: object) -> dict[str, object]:
    """An axis of named rows, the first on top."""
    ends = (positions[-1] + 0.5, positions[0] - 0.5) if positions else (0.5, -0.5)
    return {
        "tickvals": list(positions),
        "ticktext": [plain(name) for name in names],
        "range": list(ends),
        "showgrid": False,
        "zeroline": False,
        **more,
    }


def faded(colour: str, share: float) -> str:
    """A colour of the palette at so much of its opacity."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share:g})"


def tint(colour: str, share: float) -> str:
    """A colour of the palette with so much of it, the rest white; no page shines through it."""
    mixed = (round(255 - (255 - int(colour[start : start + 2], 16)) * share) for start in (1, 3, 5))
    return "#" + "".join(f"{part:02X}" for part in mixed)


def plain(text: str) -> str:
    """Text that plotly shows as it is written, whatever file it came from."""
    return html.escape(printable(text), quote=False)
