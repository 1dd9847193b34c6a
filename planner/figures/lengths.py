"""tok/s against the length of a draft's chains."""

from collections.abc import Sequence

import plotly.graph_objects as go

from planner.contracts.quantities import format_s, format_tokens_per_s
from planner.figures.marks import band
from planner.figures.style import KIND_COLOURS, ORANGE, VERMILLION, figure, from_zero, plain
from planner.what_if import Band, LengthBand, LengthCurve


def lengths_figure(curve: LengthCurve, chosen: int | None = None) -> go.Figure:
    """tok/s by length with P10 to P90, the best, where drafting pays, and no draft; `chosen` is a length to ring."""
    best, end = curve.best, curve.points[-1].draft_len + 1
    no_draft = format_tokens_per_s(curve.plain.p50)
    gain = best.tokens_per_s.p50 / curve.plain.p50
    is_paying = curve.crossover.first_draft_len is not None
    answer = f"Best chain: {_tokens(best.draft_len)} a round, {format_tokens_per_s(best.tokens_per_s.p50)}"
    return figure(
        [
            *_level(curve.plain, end),
            *_line(curve.points),
            _crossings(curve),
            _marks(
                [best],
                name=f"best: {best.draft_len}",
                marker={"symbol": "star", "size": 16, "color": ORANGE, "line": {"color": "#5a3d00", "width": 1}},
            ),
            _marks(
                [point for point in curve.points if point.draft_len == chosen],
                name=f"chosen: {chosen}",
                marker={"symbol": "circle-open", "size": 18, "color": VERMILLION, "line": {"width": 3}},
            ),
        ],
        title=answer if is_paying else "A chain pays at no length",
        subtitle=f"{gain:.2f} times no draft ({no_draft}); draft: {plain(curve.draft)}",
        x_axis=from_zero("draft length (tokens in a round)", range=[0, end]),
        y_axis=from_zero("speed (tok/s)"),
    )


def _level(without: Band, end: int) -> list[dict[str, object]]:
    """No draft: a level as long as the axis."""
    colour = KIND_COLOURS["none"]
    return [
        band([0, end], [without.p10] * 2, [without.p90] * 2, colour, "no draft, P10 to P90"),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "no draft",
            "x": [0, end],
            "y": [without.p50] * 2,
            "line": {"color": colour, "width": 2, "dash": "dash"},
            "hovertemplate": f"no draft: {_said(without)}<extra></extra>",
        },
    ]


def _line(points: Sequence[LengthBand]) -> list[dict[str, object]]:
    """The median of each length within its band."""
    lengths, speeds = [point.draft_len for point in points], [point.tokens_per_s for point in points]
    colour = KIND_COLOURS["chain"]
    around = band(lengths, [speed.p10 for speed in speeds], [speed.p90 for speed in speeds], colour, "P10 to P90")
    return [
        around | {"showlegend": True},
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "median (P50)",
            "x": lengths,
            "y": [speed.p50 for speed in speeds],
            "line": {"color": colour, "width": 2.5},
            "marker": {"size": 5},
            "customdata": [
                f"{_said(point.tokens_per_s)}<br>"
                f"{point.tokens_per_round:.2f} tokens per round of {format_s(point.round_s)}"
                for point in points
            ],
            "hovertemplate": "<b>chain of %{x}</b><br>%{customdata}<extra></extra>",
        },
    ]


def _marks(points: Sequence[LengthBand], *, name: str, marker: dict[str, object]) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.draft_len for point in points],
        "y": [point.tokens_per_s.p50 for point in points],
        "marker": marker,
        "hoverinfo": "skip",
        "showlegend": bool(points),
    }


def _crossings(curve: LengthCurve) -> dict[str, object]:
    """The first and the last length that pays, where shorter or longer ones do not."""
    lengths = [point.draft_len for point in curve.points]
    first, last = curve.crossover.first_draft_len, curve.crossover.last_draft_len
    words: dict[int, list[str]] = {}
    if first is not None and first > lengths[0]:
        words.setdefault(first, []).append(f"pays from {first}")
    if last is not None and last < lengths[-1]:
        words.setdefault(last, []).append(f"pays up to {last}")
    return {
        **_marks(
            [point for point in curve.points if point.draft_len in words],
            name="where it pays",
            marker={"symbol": "diamond-open", "size": 11, "color": VERMILLION, "line": {"width": 2}},
        ),
        "mode": "markers+text",
        "text": [", ".join(words[length]) for length in sorted(words)],
        "textposition": "top right",
    }


def _said(speed: Band) -> str:
    return f"{format_tokens_per_s(speed.p50)} (P10-P90 {speed.p10:.3g}-{speed.p90:.3g})"


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
