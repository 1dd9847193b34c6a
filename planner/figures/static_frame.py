"""What surrounds the marks of a static picture: axes, names laid over them, title, legend, and a place for each."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator
from matplotlib.transforms import Transform, blended_transform_factory

from planner.figures.static_marks import PT_PER_PX, Panel, Spec, draw_annotation, draw_shape, written

EDGE = 14  # pixels around everything
_TOP = 64  # pixels of title and subtitle
_RIGHT = 16  # pixels, of half a tick's label
_BAR, _BAR_ROOM = 14, 66  # pixels of a colour bar, and with its labels
_GRID_OPACITY = 0.13

Side = Literal["x", "y"]
Panels = Mapping[tuple[str, str], Panel]


def panels_for(drawn: Figure, layout: Spec, traces: Sequence[Spec]) -> dict[tuple[str, str], Panel]:
    """A panel for each pair of axes that traces are drawn on."""
    pairs = dict.fromkeys((trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in traces)
    return {
        names: Panel(
            axes=drawn.add_axes((0.1, 0.1, 0.8, 0.8), label=str(names)),
            x_axis=(x_axis := _axis(layout, names[0])),
            y_axis=(y_axis := _axis(layout, names[1])),
            barmode=layout.get("barmode", "group"),
            bargap=layout.get("bargap", 0.2),
            x_names=list(x_axis.get("categoryarray", ())),
            y_names=list(y_axis.get("categoryarray", ())),
        )
        for names in pairs or [("x", "y")]
    }


def dress(panel: Panel, ink: str) -> None:
    """Limits, ticks, titles and grid of a panel whose marks are drawn."""
    sides: tuple[tuple[Side, Spec, list[str]], ...] = (
        ("x", panel.x_axis, panel.x_names),
        ("y", panel.y_axis, panel.y_names),
    )
    for name, spec, names in sides:
        _scale(panel.axes, name, spec)
        _ticks(panel.axes, name, spec, names)
        label = written(spec.get("title", {}).get("text", ""))
        panel.axes.set(**{f"{name}label": label})
        if spec.get("showgrid", True):
            panel.axes.grid(True, axis=name, color=ink, alpha=_GRID_OPACITY, linewidth=0.8)
        if spec.get("visible") is False:
            panel.axes.set_axis_off()
        axis = panel.axes.xaxis if name == "x" else panel.axes.yaxis
        axis.label.set_fontsize(13 * PT_PER_PX)
    panel.axes.tick_params(length=0, labelsize=12 * PT_PER_PX)
    panel.axes.spines[:].set_visible(False)
    panel.axes.patch.set_visible(False)
    panel.axes.set_axisbelow(True)


def lay_over(paper: Axes, panels: Panels, layout: Spec, ink: str) -> None:
    """Lines and names that belong to no trace; their places count along an axis or along all panels together."""

    def side(thing: Spec, name: Side) -> tuple[Transform, bool]:
        wanted = thing.get(f"{name}ref", name)
        panel = next((panel for names, panel in panels.items() if wanted in names), None)
        if panel is None:
            return paper.transAxes, False
        return panel.axes.transData, (panel.x_axis if name == "x" else panel.y_axis).get("type") == "log"

    for shape in layout.get("shapes", ()):
        place = blended_transform_factory(side(shape, "x")[0], side(shape, "y")[0])
        draw_shape(paper, shape, place, ink)
    for note in layout.get("annotations", ()):
        (x_side, is_x_log), (y_side, is_y_log) = side(note, "x"), side(note, "y")
        draw_annotation(paper, note, blended_transform_factory(x_side, y_side), (is_x_log, is_y_log))


def put_title(drawn: Figure, title: Spec) -> None:
    """Title and subtitle in the corner."""
    width, height = drawn.bbox.width, drawn.bbox.height
    lines = ((title["text"], 12, 16, 1.0), (title.get("subtitle", {}).get("text", ""), 36, 13, 0.8))
    for text, down, size, opacity in lines:
        place = EDGE / width, 1 - down / height
        drawn.text(*place, written(text), fontsize=size * PT_PER_PX, va="top", alpha=opacity)


def put_legend(drawn: Figure, renderer: RendererAgg, handles: Mapping[str, Artist]) -> float:
    """The legend below, in as few rows as the width allows; its height in pixels."""
    room = drawn.bbox.width - 2 * EDGE
    for columns in range(len(handles), 0, -1):
        legend = drawn.legend(
            list(handles.values()),
            list(handles),
            loc="lower left",
            bbox_to_anchor=(EDGE / drawn.bbox.width, 4 / drawn.bbox.height),
            ncols=columns,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            columnspacing=1.4,
            handlelength=1.3,
            fontsize=12 * PT_PER_PX,
        )
        extent = legend.get_window_extent(renderer)
        if extent.width <= room or columns == 1:
            return float(extent.height) + 10
        legend.remove()
    return 0.0


def fit(drawn: Figure, renderer: RendererAgg, panels: Panels, paper: Axes, below: float, *, has_bar: bool) -> None:
    """Give panels what is left by title, labels and legend (`below`, in pixels); drop texts that no bar can hold."""
    width, height = drawn.bbox.width, drawn.bbox.height
    for _ in range(2):  # another size may bring other ticks
        left = bottom = 0.0
        for panel in panels.values():
            for axis in (panel.axes.xaxis, panel.axes.yaxis):
                extent = axis.get_tightbbox(renderer)
                if extent is not None:
                    left = max(left, panel.axes.bbox.x0 - extent.x0)
                    bottom = max(bottom, panel.axes.bbox.y0 - extent.y0)
        x0, x1 = (EDGE + left) / width, 1 - (EDGE + (_BAR_ROOM if has_bar else _RIGHT)) / width
        y0, y1 = (EDGE + below + bottom) / height, 1 - _TOP / height
        paper.set_position((x0, y0, x1 - x0, y1 - y0))
        for panel in panels.values():
            across, up = panel.x_axis.get("domain", (0, 1)), panel.y_axis.get("domain", (0, 1))
            panel.axes.set_position(
                (
                    x0 + across[0] * (x1 - x0),
                    y0 + up[0] * (y1 - y0),
                    (across[1] - across[0]) * (x1 - x0),
                    (up[1] - up[0]) * (y1 - y0),
                )
            )
    for panel in panels.values():
        for text, bar in panel.inside:
            text.set_visible(text.get_window_extent(renderer).width + 4 <= bar.get_window_extent(renderer).width)


def put_colour_bar(drawn: Figure, panel: Panel, spec: Spec, heat: ScalarMappable) -> None:
    """The colours of a heat map beside it."""
    around = panel.axes.get_position()
    pixel = 1 / drawn.bbox.width
    beside = drawn.add_axes((around.x1 + 12 * pixel, around.y0, _BAR * pixel, around.height))
    bar = drawn.colorbar(heat, cax=beside, ticks=FixedLocator(list(spec["tickvals"])))
    beside.yaxis.set_minor_locator(NullLocator())
    beside.set_yticks(list(spec["tickvals"]), list(spec["ticktext"]))
    beside.tick_params(length=0, labelsize=12 * PT_PER_PX)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")
    beside.set_title(written(spec["title"]["text"]), fontsize=12 * PT_PER_PX)


def _axis(layout: Spec, name: str) -> Spec:
    """The axis that a trace calls x, y2 and so on."""
    found: Spec = layout.get(f"{name[0]}axis{name[1:]}", {})
    return found


def _scale(axes: Axes, name: Side, spec: Spec) -> None:
    is_log = spec.get("type") == "log"
    if is_log:
        axes.set(**{f"{name}scale": "log"})
    low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
    if "range" in spec:
        low, high = (10.0**end if is_log else end for end in spec["range"])
    elif spec.get("rangemode") == "tozero":
        low, high = min(0.0, low), max(0.0, high)
    if spec.get("autorange") == "reversed":
        low, high = high, low
    if math.isfinite(low) and math.isfinite(high):
        axes.set(**{f"{name}lim": (low, high)})


def _ticks(axes: Axes, name: Side, spec: Spec, names: Sequence[str]) -> None:
    axis = axes.xaxis if name == "x" else axes.yaxis
    suffix = spec.get("ticksuffix", "")
    named = (range(len(names)), names) if names else (spec.get("tickvals"), spec.get("ticktext"))
    if named[0] is not None and named[1] is not None:
        axis.set_major_locator(FixedLocator(list(named[0])))
        axis.set_ticks(list(named[0]), [written(text) for text in named[1]])
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
        if spec.get("type") == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        elif isinstance(spec.get("dtick"), int | float):
            axis.set_major_locator(MultipleLocator(spec["dtick"]))
        elif "nticks" in spec:
            axis.set_major_locator(MaxNLocator(spec["nticks"]))
    axis.set_minor_locator(NullLocator())
