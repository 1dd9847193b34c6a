"""Marks that several figures draw: bands, intervals as lines, and dots whose shape says what their colour does."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from planner.figures.style import BLUE, GREY, VERMILLION, faded, figure

_RATIO_TICKS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_LEAST_RATIO, _MOST_RATIO = 0.1, 10.0


def band(
    xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str, name: str
) -> dict[str, object]:
    """What lies between two lines over the same places."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [*xs, *reversed(xs)],
        "y": [*lows, *reversed(highs)],
        "fill": "toself",
        "fillcolor": faded(colour, 0.2),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def flat_intervals(ends: Sequence[tuple[float, float]], ys: Sequence[float], **more: object) -> dict[str, object]:
    """A horizontal line from one end to the other in each row."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for low, high in ends for x in (low, high, None)],
        "y": [y for row in ys for y in (row, row, None)],
        "hoverinfo": "skip",
        **more,
    }


def upright_intervals(xs: Sequence[float], ends: Sequence[tuple[float, float]], **more: object) -> dict[str, object]:
    """A vertical line from one end to the other at each place."""
    flat = flat_intervals(ends, xs)
    return {**flat, "x": flat["y"], "y": flat["x"], **more}


def inside_marker(is_inside: bool | None) -> dict[str, object]:
    """A filled dot inside its interval, a cross outside, a ring where there is none."""
    colours = {True: BLUE, False: VERMILLION, None: GREY}
    symbols = {True: "circle", False: "x", None: "circle-open"}
    width = 1.5 if is_inside is None else 0
    return {"symbol": symbols[is_inside], "color": colours[is_inside], "size": 11, "line": {"width": width}}


INSIDE_NAMES: dict[bool | None, str] = {
    True: "measured, inside",
    False: "measured, outside",
    None: "measured, not predicted",
}


def ratio_axis(title: str, ratios: Sequence[float], *, most_ticks: int = 9) -> dict[str, object]:
    """A logarithmic axis of ratios, labelled as differences in percent; 1 is in its middle, and the furthest inside."""
    reach = max([math.log10(1.12), *(abs(math.log10(ratio)) for ratio in ratios)]) * 1.08
    ticks = [1.0]
    for tick in sorted(_RATIO_TICKS, key=lambda tick: abs(math.log10(tick))):
        is_apart = all(abs(math.log10(tick / other)) > 2 * reach / (most_ticks + 1) for other in ticks)
        if abs(math.log10(tick)) <= reach and is_apart:
            ticks.append(tick)
    return {
        "title": {"text": title},
        "type": "log",
        "range": [-reach, reach],
        "tickvals": sorted(ticks),
        "ticktext": ["0" if tick == 1 else f"{100 * tick - 100:+.0f}" for tick in sorted(ticks)],
        "zeroline": False,
    }


def clipped(ratio: float) -> float:
    """A ratio that can be drawn: what lies out of bounds stands at the bound."""
    return min(max(ratio, _LEAST_RATIO), _MOST_RATIO)


def nothing_to_see(title: str, why: str) -> go.Figure:
    """A figure of nothing, which says why."""
    return figure([], title=title, subtitle=why, x_axis={"visible": False}, y_axis={"visible": False}, height=120)
