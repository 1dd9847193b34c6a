"""The rounds of a run: what each drafted, accepted and took, and two timelines, predicted above measured."""

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from planner.contracts.performance import RoundSplit
from planner.contracts.quantities import format_s, time_unit
from planner.contracts.report import Report, RoundRecord
from planner.contracts.timeline import LANES, Span
from planner.figures.lanes import lane_bars, link_gaps
from planner.figures.marks import nothing_to_see
from planner.figures.style import (
    BLUE,
    GREY,
    IDLE_PATTERN,
    KIND_COLOURS,
    LANE_COLOURS,
    LANE_NAMES,
    VERMILLION,
    faded,
    figure,
    from_zero,
)
from planner.timelines import PASS, Stretch, Timelines

_PARTS: tuple[tuple[str, dict[str, object], Callable[[RoundSplit], float]], ...] = (
    ("compute", {"color": LANE_COLOURS["compute"]}, lambda split: split.compute_s),
    ("waiting for weights", {"pattern": IDLE_PATTERN}, lambda split: split.waiting_for_weights_s),
    ("draft", {"color": LANE_COLOURS["draft"]}, lambda split: split.draft_s),
    ("host", {"color": LANE_COLOURS["host"]}, lambda split: split.host_s),
    ("unexplained", {"color": GREY}, lambda split: max(0.0, split.unexplained_s)),
)
_COPIED = {"shape": "/", "size": 6, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "rgba(0,0,0,0.45)"}
_MOST_UNIT_TICKS = 6
_GAP = 0.1  # between two panels, of the height


def rounds_figure(report: Report) -> go.Figure:
    """What every round drafted and accepted, and below it how long it took; says so where nothing was measured."""
    rounds = report.rounds
    if not rounds:
        return nothing_to_see("Rounds", "not measured: the run ended before its first round")
    unit, size_s = time_unit(max(entry.compute.round_s for entry in rounds))
    numbers = list(range(1, len(rounds) + 1))
    deepest = max(max(entry.num_emitted_tokens, _depth(entry) + 1) for entry in rounds)
    x_axis = {"range": [0.4, len(rounds) + 0.6], "showgrid": False}
    lower = {"xaxis": "x2", "yaxis": "y2"}
    predicted = report.predicted.round
    traces = [*_accepted(rounds, numbers), *({**trace, **lower} for trace in _spent(rounds, numbers, size_s))]
    if predicted is not None:
        traces.append({**_predicted_round(predicted, len(rounds), size_s), **lower})
    drafted, accepted = report.num_draft_tokens, report.num_accepted_tokens
    return figure(
        traces,
        title=f"{accepted} of {drafted} drafted tokens accepted" if drafted else "No draft: one token a round",
        subtitle=_tokens_said(report),
        x_axis={**x_axis, "showticklabels": False, "ticktext": [], "tickvals": [], "anchor": "y"},
        xaxis2={**x_axis, "title": {"text": "round"}, "anchor": "y2"},
        y_axis=from_zero(
            "tokens", domain=[0.5 + _GAP / 2, 1], dtick=1 if deepest <= _MOST_UNIT_TICKS else None, nticks=6
        ),
        yaxis2=from_zero(f"time ({unit})", domain=[0, 0.5 - _GAP / 2], nticks=6, anchor="x2"),
        height=480,
        barmode="stack",
        bargap=0.15,
    )


def timelines_figure(lines: Timelines, *, title: str = "The same stretch of time") -> go.Figure:
    """Copies, compute and draft as the plan predicts them, and below as the run's trace has them, at one scale."""
    unit, size_s = time_unit(lines.length_s)
    present = [lane for lane in LANES if any(span.lane == lane for span in _spans(lines))]
    upper, lower = (0.5 + _GAP / 2, 0.93), (0.0, 0.43)
    x_axis = {"range": [0, lines.length_s / size_s], "zeroline": False}
    y_axis = {
        "categoryorder": "array",
        "categoryarray": [LANE_NAMES[lane] for lane in reversed(present)],
        "range": [-0.5, len(present) - 0.5],
        "showgrid": False,
    }
    traces = [*_lanes(lines.predicted, lines.length_s, size_s)]
    traces += [{**trace, "xaxis": "x2", "yaxis": "y2"} for trace in _lanes(lines.measured, lines.length_s, size_s)]
    measured_s = sum(lines.measured_rounds_s) / len(lines.measured_rounds_s)
    said = f"a round: {format_s(lines.predicted_round_s)} predicted, {format_s(measured_s)} measured"
    return figure(
        traces,
        title=title,
        subtitle=said,
        x_axis={**x_axis, "showticklabels": False, "ticktext": [], "tickvals": [], "anchor": "y"},
        xaxis2={**x_axis, "title": {"text": f"time ({unit})"}, "anchor": "y2"},
        y_axis={**y_axis, "domain": list(upper)},
        yaxis2={**y_axis, "domain": list(lower), "anchor": "x2"},
        height=470,
        barmode="overlay",
        bargap=0.25,
        showlegend=False,
        annotations=[
            _heading("<b>predicted</b>; the draft lane holds the host's time, too", upper[1]),
            _heading("<b>measured</b>; pale: the whole pass, with resident units and waiting", lower[1]),
        ],
        shapes=[
            *_starts(lines.predicted, upper, "x", size_s),
            *_starts(lines.measured, lower, "x2", size_s),
        ],
    )


def _spans(lines: Timelines) -> tuple[Span, ...]:
    return (*lines.predicted.spans, *lines.measured.spans)


def _heading(text: str, up: float) -> dict[str, object]:
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": up, "yref": "paper", "yanchor": "bottom"}
    return {"text": text, **place}


def _starts(stretch: Stretch, domain: tuple[float, float], axis: str, size_s: float) -> list[dict[str, object]]:
    ends = {"y0": domain[0], "y1": domain[1], "yref": "paper"}
    return [
        {"type": "line", "x0": at_s / size_s, "x1": at_s / size_s, "xref": axis, **ends}
        | {"line": {"width": 1.5, "dash": "dot"}}
        for at_s in stretch.starts_s
    ]


def _tokens_said(report: Report) -> str:
    """Tokens per round, measured and predicted, as far as they are known."""
    measured, predicted = report.measured.tokens_per_round, report.predicted.tokens_per_round
    expected = "" if predicted is None else f" ({predicted:.2f} predicted)"
    return "" if measured is None else f"{measured:.2f} tokens a round{expected}, one of them the target's own"


def _predicted_round(predicted: RoundSplit, num_rounds: int, size_s: float) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"predicted: {format_s(predicted.round_s)}",
        "x": [0.4, num_rounds + 0.6],
        "y": [predicted.round_s / size_s] * 2,
        "line": {"color": VERMILLION, "width": 2, "dash": "dash"},
        "hoverinfo": "skip",
    }


def _accepted(rounds: Sequence[RoundRecord], numbers: Sequence[int]) -> list[dict[str, object]]:
    """The target's own token, accepted ones by where they came from, and as an outline how deep the round drafted."""
    by_model = [entry.num_accepted_tokens - entry.num_accepted_ngram_tokens for entry in rounds]
    own = [entry.num_emitted_tokens - entry.num_accepted_tokens for entry in rounds]
    copied = [entry.num_accepted_ngram_tokens for entry in rounds]
    depths = [_depth(entry) for entry in rounds]
    said = [
        f"<b>round {number}</b><br>{entry.num_draft_tokens} drafted, {entry.num_accepted_tokens} accepted"
        for number, entry in zip(numbers, rounds, strict=True)
    ]
    common = {"type": "bar", "x": numbers, "customdata": said, "hovertemplate": "%{customdata}<extra></extra>"}
    return [
        {**common, "name": "the target's own", "y": own, "marker": {"color": faded(GREY, 0.5)}},
        {**common, "name": "accepted", "y": by_model, "marker": {"color": BLUE}, "showlegend": any(by_model)},
        {
            **common,
            "name": "accepted, copied from earlier text",
            "y": copied,
            "marker": {"color": KIND_COLOURS["ngram"], "pattern": _COPIED},
            "showlegend": any(copied),
        },
        {
            **common,
            "name": "drafted deeper, rejected",
            "y": [max(0, depth - entry.num_accepted_tokens) for depth, entry in zip(depths, rounds, strict=True)],
            "marker": {"color": faded(BLUE, 0.12), "line": {"width": 1, "color": faded(BLUE, 0.5)}},
            "showlegend": any(depths),
        },
    ]


def _depth(entry: RoundRecord) -> int:
    """Of the longest path that the round drafted; older reports, which do not say it, are of chains."""
    return entry.num_draft_tokens if entry.draft_depth is None else entry.draft_depth


def _spent(rounds: Sequence[RoundRecord], numbers: Sequence[int], size_s: float) -> list[dict[str, object]]:
    return [
        {
            "type": "bar",
            "name": name,
            "x": numbers,
            "y": [of(entry.compute) / size_s for entry in rounds],
            "marker": {"line": {"width": 0}, **marker},
            "customdata": [format_s(of(entry.compute)) for entry in rounds],
            "hovertemplate": f"round %{{x}}: {name} %{{customdata}}<extra></extra>",
            "showlegend": any(of(entry.compute) > 0 for entry in rounds),
        }
        for name, marker, of in _PARTS
    ]


def _lanes(stretch: Stretch, length_s: float, size_s: float) -> list[dict[str, object]]:
    """The bars of every lane; a whole pass lies pale behind its units, and the link's idleness is hatched."""
    by_lane: dict[str, list[Span]] = {lane: [] for lane in LANES}
    passes: list[Span] = []
    for span in stretch.spans:
        (passes if span.label == PASS else by_lane[span.lane]).append(span)
    behind = lane_bars("compute", passes, size_s)
    traces = [{**behind, "marker": {"color": faded(LANE_COLOURS["compute"], 0.22), "line": {"width": 0}}}]
    traces += [lane_bars(lane, by_lane[lane], size_s) for lane in LANES]
    if by_lane["link"]:
        idle = lane_bars("link", list(link_gaps(by_lane["link"], length_s)), size_s)
        traces.append({**idle, "name": "link idle", "marker": {"pattern": IDLE_PATTERN, "line": {"width": 0}}})
    return traces
