"""Figures of runs: predicted beside measured, residuals, coverage, corrections; timelines and rounds from beside."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from planner.compare import Comparison, Row
from planner.comparison_table import percent
from planner.figures.marks import INSIDE_NAMES, clipped, flat_intervals, inside_marker, ratio_axis
from planner.figures.residuals import interval_of, ratio_of, residuals_figure, row_said
from planner.figures.run_rounds import rounds_figure, timelines_figure
from planner.figures.style import BLUE, GREY, VERMILLION, faded, figure, plain, rows
from planner.track_record import Coverage, Ratios
from planner.uncertainty import Component

__all__ = [
    "components_figure",
    "corrections_figure",
    "coverage_figure",
    "residuals_figure",
    "rounds_figure",
    "timelines_figure",
]

_RATIO_LABELS: dict[Component, str] = {
    "link": "link busy",
    "compute": "compute",
    "draft": "draft",
    "host": "host",
    "tokens": "tokens per round",
    "ttft": "first token",
}
_QUANTILES = (("P10", 0.1, "triangle-left"), ("P50", 0.5, "circle"), ("P90", 0.9, "triangle-right"))


def components_figure(comparison: Comparison, *, name: str = "") -> go.Figure:
    """Each component of a run against its predicted median: P10 to P90 as a bar, a dot or a cross where it came out."""
    shown = comparison.rows
    drawn = [row for row in shown if row.p50]
    places = {row.component.name: place for place, row in enumerate(shown)}
    traces: list[dict[str, object]] = [
        flat_intervals(
            [interval_of(row) for row in drawn],
            [places[row.component.name] for row in drawn],
            name="predicted, P10 to P90",
            line={"width": 12, "color": faded(BLUE, 0.38)},
        ),
        {
            "type": "scatter",
            "mode": "markers",
            "name": "predicted, P50",
            "x": [1.0] * len(drawn),
            "y": [places[row.component.name] for row in drawn],
            "marker": {"symbol": "line-ns-open", "size": 14, "color": GREY, "line": {"width": 2}},
            "hoverinfo": "skip",
        },
        *(_measured(shown, places, is_inside) for is_inside in (True, False, None)),
    ]
    ratios = [ratio_of(value, row) for row in drawn for value in (row.p10, row.p90, row.measured)]
    inside = sum(row.is_inside is True for row in shown)
    judged = sum(row.is_inside is not None for row in shown)
    return figure(
        traces,
        title=f"{f'{plain(name)}: ' if name else ''}{inside} of {judged} components inside their interval",
        subtitle=comparison.note or "predicted \u2192 measured",
        x_axis=ratio_axis("measured against the predicted median (%)", ratios),
        y_axis=rows(range(len(shown)), [], ticktext=[_row_name(row) for row in shown]),
        height=170 + 40 * max(1, len(shown)),
    )


def coverage_figure(coverages: Sequence[Coverage]) -> go.Figure:
    """In which share of the runs each component was measured at or below its P10, P50 and P90: how true these are."""
    traces: list[dict[str, object]] = []
    for place, (name, nominal, symbol) in enumerate(_QUANTILES):
        shares = [(entry.below_p10, entry.below_p50, entry.below_p90)[place] for entry in coverages]
        ys = [row + 0.22 * (place - 1) for row in range(len(coverages))]
        colour = (BLUE, GREY, VERMILLION)[place]
        traces.append(
            flat_intervals(
                [(100 * share.low_frac, 100 * share.high_frac) for share in shares],
                ys,
                line={"width": 2.5, "color": faded(colour, 0.45)},
                showlegend=False,
                name=name,
            )
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{name}: {100 * nominal:.0f} % wanted",
                "x": [100 * share.frac for share in shares],
                "y": ys,
                "marker": {"symbol": symbol, "size": 11, "color": colour},
                "customdata": [
                    [entry.component.label, share.num_all] for entry, share in zip(coverages, shares, strict=True)
                ],
                "hovertemplate": f"<b>%{{customdata[0]}}</b><br>%{{x:.0f}} % of %{{customdata[1]}} runs below {name}, "
                f"{100 * nominal:.0f} % wanted<extra></extra>",
            }
        )
    num_runs = max((entry.below_p50.num_all for entry in coverages), default=0)
    return figure(
        traces,
        title="Are the intervals true?",
        subtitle=f"dotted: wanted; lines: P10-P90 of what {num_runs} runs tell (Wilson)",
        x_axis={"title": {"text": "runs measured at or below (%)"}, "range": [-3, 103], "zeroline": False},
        y_axis=rows(range(len(coverages)), [entry.component.label for entry in coverages]),
        height=190 + 44 * max(1, len(coverages)),
        shapes=[
            {"type": "line", "x0": 100 * nominal, "x1": 100 * nominal, "y0": 0, "y1": 1, "yref": "paper"}
            | {"line": {"dash": "dot", "width": 1.5}}
            for _, nominal, _ in _QUANTILES
        ],
    )


def corrections_figure(ratios: Sequence[Ratios]) -> go.Figure:
    """Measured over predicted of each run, before learning from runs and after learning from all others."""
    after, medians = [entry.after or () for entry in ratios], [entry.median_after for entry in ratios]
    traces: list[dict[str, object]] = []
    for name, offset, colour, symbol, line, values, middles in (
        ("before", -0.17, GREY, "circle-open", 1.5, [e.before for e in ratios], [e.median_before for e in ratios]),
        ("after the other runs corrected it", 0.17, BLUE, "circle", 0, after, medians),
    ):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [clipped(value) for each in values for value in each],
                "y": [row + offset for row, each in enumerate(values) for _ in each],
                "marker": {"symbol": symbol, "size": 9, "color": faded(colour, 0.7), "line": {"width": line}},
                "customdata": [percent(value - 1) for each in values for value in each],
                "hovertemplate": f"{name}: %{{customdata}}<extra></extra>",
            }
        )
        shown = [(row, middle) for row, middle in enumerate(middles) if middle is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"median {name}",
                "x": [clipped(middle) for _, middle in shown],
                "y": [row + offset for row, _ in shown],
                "marker": {"symbol": "line-ns-open", "size": 18, "color": colour, "line": {"width": 3}},
                "customdata": [percent(middle - 1) for _, middle in shown],
                "hovertemplate": f"median {name}: %{{customdata}}<extra></extra>",
                "showlegend": False,
            }
        )
    every = [value for entry in ratios for value in (*entry.before, *(entry.after or ()))]
    num_runs = max((len(entry.before) for entry in ratios), default=0)
    said = f"dots: {num_runs} runs; bars: their median" if num_runs > 1 else "one run alone corrects nothing"
    return figure(
        traces,
        title="What learning from runs would correct",
        subtitle=said,
        x_axis=ratio_axis("measured against predicted (%)", [clipped(value) for value in every]),
        y_axis=rows(range(len(ratios)), [_RATIO_LABELS[entry.component] for entry in ratios]),
        height=190 + 46 * max(1, len(ratios)),
        shapes=[
            {"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper"}
            | {"line": {"dash": "dot", "width": 1.5}}
        ],
    )


def _measured(shown: Sequence[Row], places: Mapping[str, int], is_inside: bool | None) -> dict[str, object]:
    of_kind = [row for row in shown if row.is_inside is is_inside]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": INSIDE_NAMES[is_inside],
        "x": [ratio_of(row.measured, row) for row in of_kind],
        "y": [places[row.component.name] for row in of_kind],
        "marker": inside_marker(is_inside),
        "customdata": [row_said(row) for row in of_kind],
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": bool(of_kind),
    }


def _row_name(row: Row) -> str:
    shown, small = row.component.shown, "<span style='font-size:11px'>"
    return f"{row.component.label}<br>{small}{shown(row.p50)} \u2192 {shown(row.measured)}</span>"
