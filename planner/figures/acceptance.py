"""Figures of acceptance: survival, draft lengths, ranks, matches, probabilities and trees, replayed from recordings."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from planner.acceptance_curves import Agreement, DraftCalibration, GrowthCurve, MatchGroup, ProbabilityPoint, TextCurve
from planner.figures.marks import band, upright_intervals
from planner.figures.style import (
    BLUE,
    GREY,
    KIND_COLOURS,
    KIND_NAMES,
    ORANGE,
    PALETTE,
    PURPLE,
    faded,
    figure,
    from_zero,
    logarithmic,
    plain,
)

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot")
_EVERY_TEXT = "all texts"
_INTERVAL = "bands: P10-P90 over prompts"
_NO_INTERVAL = "no band where one prompt is all there is"
_AGREEMENTS: dict[Agreement, tuple[str, str, str]] = {
    "all": ("always the same before", BLUE, "circle"),
    "most": ("mostly the same", ORANGE, "square"),
    "few": ("half the time or less", PURPLE, "diamond"),
    "unknown": ("not recorded how often", GREY, "circle-open"),
}
_PROB_TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def survival_figure(curves: Sequence[TextCurve], *, drafter: str) -> go.Figure:
    """Share of rounds that accept at least so many drafted tokens, for each kind of text."""
    longest = max((curve.steps[-1] for curve in curves), default=1)
    return figure(
        _text_curves(curves, 100.0, "%{x} or more accepted in %{y:.0f} % of the rounds"),
        title="How far drafts are right",
        subtitle=f"{plain(drafter)}, {longest} tokens drafted; {_interval_said(curves)}",
        x_axis={
            "title": {"text": "accepted tokens, at least"},
            "range": [0.5, longest + 0.5],
            "dtick": _dtick(longest),
        },
        y_axis=from_zero("share of rounds (%)", range=[0, 100]),
    )


def lengths_figure(curves: Sequence[TextCurve], *, drafter: str) -> go.Figure:
    """Tokens per round, had so many been drafted; a round of no draft has one, where the axis starts."""
    longest = max((curve.steps[-1] for curve in curves), default=1)
    highest = max((value for curve in curves for value in (*curve.values, *(curve.highs or ()))), default=1.0)
    return figure(
        _text_curves(curves, 1.0, "%{x} drafted: %{y:.2f} tokens per round"),
        title="What another draft length would have done",
        subtitle=f"{plain(drafter)}, replayed; {_interval_said(curves)}",
        x_axis=from_zero("draft length (tokens in a round)", range=[0, longest + 0.5], dtick=_dtick(longest)),
        y_axis={"title": {"text": "tokens per round"}, "range": _from_one(highest)},
    )


def ranks_figure(curves: Sequence[TextCurve], *, drafter: str) -> go.Figure:
    """Share of the target's tokens within the draft's first choices: what a wider tree could find."""
    most = max((curve.steps[-1] for curve in curves), default=1)
    return figure(
        _text_curves(curves, 100.0, "%{y:.1f} % of the tokens are within its first %{x}"),
        title="Was the right token among the first choices?",
        subtitle=f"{plain(drafter)}; {_interval_said(curves)}",
        x_axis={"title": {"text": "first choices of the draft"}, "range": [0.5, most + 0.5], "dtick": _dtick(most)},
        y_axis=from_zero("share of tokens (%)", range=[0, 100]),
    )


def matches_figure(groups: Sequence[MatchGroup]) -> go.Figure:
    """How often what followed an earlier match followed again, by the match's length and by how sure it looked."""
    spans = list(dict.fromkeys((entry.least_tokens, entry.most_tokens) for entry in groups))
    spans.sort()
    names = [_span_name(least, most) for least, most in spans]
    places = {span: place for place, span in enumerate(spans)}
    present = [agreement for agreement in _AGREEMENTS if any(entry.agreement == agreement for entry in groups)]
    traces: list[dict[str, object]] = []
    for order, agreement in enumerate(present):
        name, colour, symbol = _AGREEMENTS[agreement]
        entries = [entry for entry in groups if entry.agreement == agreement]
        xs = [
            places[entry.least_tokens, entry.most_tokens] + 0.14 * (order - (len(present) - 1) / 2) for entry in entries
        ]
        ends = [(100 * entry.right.low_frac, 100 * entry.right.high_frac) for entry in entries]
        line = {"width": 2.5, "color": faded(colour, 0.45)}
        traces.append(upright_intervals(xs, ends, line=line, name=name, showlegend=False))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": xs,
                "y": [100 * entry.right.frac for entry in entries],
                "marker": {"symbol": symbol, "size": 10, "color": colour},
                "customdata": [entry.right.num_all for entry in entries],
                "hovertemplate": f"{name}: right %{{y:.0f}} % of %{{customdata}} times<extra></extra>",
            }
        )
    priors = [entry for entry in groups if entry.agreement in ("all", "unknown")]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "assumed beforehand, if always the same",
            "x": [places[entry.least_tokens, entry.most_tokens] for entry in priors],
            "y": [100 * entry.prior_frac for entry in priors],
            "line": {"color": GREY, "dash": "dot", "width": 2},
            "hovertemplate": "assumed: %{y:.0f} %<extra></extra>",
        }
    )
    return figure(
        traces,
        title="Is a copy of earlier text right?",
        subtitle="by what followed at earlier occurrences; lines: P10-P90 (Wilson)",
        x_axis={
            "title": {"text": "length of the earlier match (tokens)"},
            "tickvals": list(places.values()),
            "ticktext": names,
        },
        y_axis=from_zero("continuation right (%)", range=[0, 102]),
        height=380,
    )


def calibration_figure(found: DraftCalibration, *, drafter: str) -> go.Figure:
    """How often the target takes what the draft gives some probability, in log odds; the diagonal: as it says."""
    points = found.points
    xs = [_log_odds(point.draft_prob) for point in points]
    ends = [(_log_odds(point.taken.low_frac), _log_odds(point.taken.high_frac)) for point in points]
    edge = [_log_odds(_PROB_TICKS[0]), _log_odds(_PROB_TICKS[-1])]
    traces: list[dict[str, object]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as the draft says",
            "x": edge,
            "y": edge,
            "line": {"color": GREY, "dash": "dot", "width": 2},
            "hoverinfo": "skip",
        },
        upright_intervals(
            xs, ends, line={"width": 2.5, "color": faded(BLUE, 0.4)}, name="P10 to P90", showlegend=False
        ),
        _probability_points("recorded", [point for point in points if not _is_edge(point)], "circle"),
        _probability_points("recorded, none or all", [point for point in points if _is_edge(point)], "circle-open"),
    ]
    if found.curve is not None:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "what plans take of it",
                "x": [_log_odds(prob) for prob in found.curve.draft_probs],
                "y": [_log_odds(share) for share in found.curve.accepted_shares],
                "line": {"color": ORANGE, "width": 2.5},
                "hoverinfo": "skip",
            }
        )
    places = [_log_odds(tick) for tick in _PROB_TICKS]
    ticks = {"tickvals": places, "ticktext": [f"{100 * tick:.4g}" for tick in _PROB_TICKS]}
    axis = {**ticks, "range": [edge[0] - 0.3, edge[1] + 0.3], "zeroline": False}
    return figure(
        traces,
        title="Is the draft as sure as it should be?",
        subtitle=f"{plain(drafter)}; lines: P10-P90 (Wilson)",
        x_axis={"title": {"text": "probability by the draft (%)"}, **axis},
        y_axis={"title": {"text": "taken by the target (%)"}, **axis},
        height=440,
    )


def growth_figure(curves: Sequence[GrowthCurve], *, drafter: str) -> go.Figure:
    """Tokens per round against drafted nodes: what a wider or deeper tree adds, before what it costs."""
    highest = max((value for curve in curves for value in curve.tokens_per_round), default=1.0)
    depths = sorted({curve.max_depth for curve in curves if curve.max_depth is not None})
    traces = []
    for curve in curves:
        place = 0 if curve.max_depth is None else depths.index(curve.max_depth)
        depth = "" if curve.max_depth is None else f", {curve.max_depth} deep"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": KIND_NAMES[curve.kind] + depth,
                "x": list(curve.num_nodes),
                "y": list(curve.tokens_per_round),
                "line": {"color": KIND_COLOURS[curve.kind], "dash": _DASHES[place % len(_DASHES)], "width": 2},
                "marker": {"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 7},
                "legendgroup": curve.kind,
                "hovertemplate": f"{KIND_NAMES[curve.kind]}{depth}, %{{x}} nodes: "
                "%{y:.2f} tokens per round<extra></extra>",
            }
        )
    most = max((curve.num_nodes[-1] for curve in curves), default=1)
    ticks = [2**power for power in range(11) if 2**power <= most]
    return figure(
        traces,
        title="What a larger tree yields",
        subtitle=f"{plain(drafter)}, replayed; copies in hybrids may go deeper than the tree",
        x_axis=logarithmic(
            "drafted tokens (nodes)",
            *(0.85, 1.2 * most),
            tickvals=ticks,
            ticktext=[str(tick) for tick in ticks],
        ),
        y_axis={"title": {"text": "tokens per round"}, "range": _from_one(highest)},
        height=420,
    )


def _probability_points(name: str, points: Sequence[ProbabilityPoint], symbol: str) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_log_odds(point.draft_prob) for point in points],
        "y": [_log_odds(point.taken.frac) for point in points],
        "marker": {"symbol": symbol, "size": 8, "color": BLUE},
        "customdata": [
            f"draft: {_percent(point.draft_prob)}<br>taken: {_percent(point.taken.frac)} "
            f"of {point.taken.num_all} candidates"
            for point in points
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": bool(points),
    }


def _text_curves(curves: Sequence[TextCurve], scale: float, hover: str) -> list[dict[str, object]]:
    """A line with its band for each kind of text, told apart by colour, marker and dash; all texts together in grey."""
    traces = []
    for place, curve in enumerate(curves):
        is_all = curve.domain is None
        name = _EVERY_TEXT if curve.domain is None else plain(curve.domain)
        colour = GREY if is_all else PALETTE[place % (len(PALETTE) - 1)]
        if curve.lows is not None and curve.highs is not None and not is_all:
            lows, highs = ([scale * value for value in ends] for ends in (curve.lows, curve.highs))
            traces.append(band(curve.steps, lows, highs, colour, name))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": list(curve.steps),
                "y": [scale * value for value in curve.values],
                "line": {"color": colour, "width": 2.5, "dash": "dash" if is_all else "solid"},
                "marker": {"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 7},
                "hovertemplate": f"<b>{name}</b>: {hover}<br>{curve.num_prompts} prompts, "
                f"{curve.num_tokens} tokens<extra></extra>",
            }
        )
    return traces


def _interval_said(curves: Sequence[TextCurve]) -> str:
    return _INTERVAL if all(curve.lows is not None for curve in curves) else _NO_INTERVAL


def _span_name(least_tokens: int, most_tokens: int | None) -> str:
    if most_tokens is None:
        return f"{least_tokens}+"
    return str(least_tokens) if least_tokens == most_tokens else f"{least_tokens}-{most_tokens}"


def _from_one(highest: float) -> list[float]:
    """The range of tokens per round: from the one that the target adds itself."""
    return [1.0, 1 + 1.06 * (highest - 1) if highest > 1 else 2.0]


def _dtick(longest: int) -> int:
    return 1 if longest <= 16 else 4 if longest <= 48 else 8


def _log_odds(prob: float) -> float:
    """The place of a probability on its axis; none of 0 or 1 is on it."""
    least = _PROB_TICKS[0]
    inside = min(max(prob, least), 1 - least)
    return math.log(inside / (1 - inside))


def _percent(prob: float) -> str:
    return f"{100 * prob:.4g} %"


def _is_edge(point: ProbabilityPoint) -> bool:
    """Whether all or none were taken, which is nowhere on an axis of odds."""
    return point.taken.frac in (0.0, 1.0)
