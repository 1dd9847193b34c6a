"""Figures as SVG and PNG for papers: matplotlib draws plotly's own figure; no browser, and no number computed twice.

Covered is what the figures here are made of: lines, filled bands, markers and texts; bars (stacked or overlaid, with a
base, with intervals); heat maps; lines and names laid over them; linear, logarithmic and named axes, several panels.
Hover texts are not. What is not covered is refused by its name.
"""

from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

import matplotlib as mpl
import plotly.graph_objects as go
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from planner.contracts.base import write_atomically
from planner.contracts.errors import UsageError
from planner.figures.static_frame import (
    Panels,
    dress,
    fit,
    lay_over,
    panels_for,
    put_colour_bar,
    put_legend,
    put_title,
)
from planner.figures.static_marks import Spec, draw_trace, written
from planner.figures.style import FONT, INKS, Theme, themed

_DPI = 100
_WIDTH = 760  # pixels
_MEASURED_FONT = "DejaVu Sans"  # comes with matplotlib
# A white of its own: what is white upon the picture must stay so where the page turns dark.
_PAPERS: dict[Theme, str] = {"light": "#fefefe", "dark": "#0d1117"}
_SETTINGS = {
    "font.family": [_MEASURED_FONT],
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "draftstream",
    "hatch.linewidth": 0.6,
}


def write_static(figure: go.Figure, path: Path, *, width: int = _WIDTH, theme: Theme = "light") -> None:
    """Write the figure, `width` pixels wide and as high as it asks, in one step.

    Raises: UsageError, for a name that ends neither in .svg nor in .png, and for what cannot be drawn;
    ResourceFailureError, where the folder is missing, not writable or full.
    """
    kind = path.suffix.lower()
    if kind == ".svg":
        write_atomically(path, svg_of(figure, width=width, theme=theme))
    elif kind == ".png":
        pixels = BytesIO()
        with mpl.rc_context(_settings(theme)):
            _drawn(figure, width, theme).savefig(pixels, format="png", dpi=2 * _DPI)
        write_atomically(path, pixels.getvalue())
    else:
        raise UsageError(f"no picture {path.name}", why="the name says its kind", remedy="end it in .svg or .png")


def svg_of(figure: go.Figure, *, width: int = _WIDTH, theme: Theme = "light") -> str:
    """The figure as an SVG that takes on the reader's light or dark theme. Raises: UsageError."""
    written_to = StringIO()
    with mpl.rc_context(_settings(theme)):
        unsaid = {"Date": None, "Creator": None, "Format": None, "Type": None}
        _drawn(figure, width, theme).savefig(written_to, format="svg", metadata=unsaid)
    return _adaptive(written_to.getvalue(), theme)


def _settings(theme: Theme) -> dict[str, object]:
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return {**_SETTINGS, **dict.fromkeys(inked, INKS[theme])}


def _drawn(figure: go.Figure, width: int, theme: Theme) -> Figure:
    spec = themed(figure, theme).to_plotly_json()
    layout, traces = spec["layout"], spec["data"]
    drawn = Figure(figsize=(width / _DPI, layout["height"] / _DPI), dpi=_DPI, facecolor=_PAPERS[theme])
    renderer = FigureCanvasAgg(drawn).get_renderer()
    panels = panels_for(drawn, layout, traces)
    handles = _draw_traces(panels, traces)
    for panel in panels.values():
        dress(panel, INKS[theme])
    paper = drawn.add_axes((0, 0, 1, 1), frameon=False, xticks=(), yticks=(), label="paper")
    lay_over(paper, panels, layout, INKS[theme])
    put_title(drawn, layout["title"])
    below = put_legend(drawn, renderer, handles) if layout.get("showlegend", True) else 0.0
    heat = next((panel for panel in panels.values() if panel.heat is not None), None)
    fit(drawn, renderer, panels, paper, below, has_bar=heat is not None)
    if heat is not None and heat.heat is not None:
        put_colour_bar(drawn, heat, heat.heat[0], heat.heat[1])
    return drawn


def _draw_traces(panels: Panels, traces: Sequence[Spec]) -> dict[str, Artist]:
    """Draw all of them; what the legend shows, by its name."""
    handles: dict[str, Artist] = {}
    for index, trace in enumerate(traces):
        handle = draw_trace(panels[trace.get("xaxis", "x"), trace.get("yaxis", "y")], trace, index)
        is_named = "name" in trace and trace.get("showlegend", len(traces) > 1)
        if handle is not None and is_named and trace.get("type") != "heatmap":
            handles.setdefault(written(trace["name"]), handle)
    return handles


def _adaptive(svg: str, theme: Theme) -> str:
    """The SVG in the reader's fonts, and in the other theme's ink and paper where the reader asks for that one."""
    other: Theme = "dark" if theme == "light" else "light"
    swapped = ((INKS[theme], INKS[other]), (_PAPERS[theme], _PAPERS[other]))
    rules = "".join(
        f'[style*="{kind}: {old}"]{{{kind}:{new} !important}}' for old, new in swapped for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: {other}){{{rules}}}</style>"
    head, defs, rest = svg.partition("<defs>")
    return (head + style + defs + rest).replace(f"'{_MEASURED_FONT}'", FONT)
