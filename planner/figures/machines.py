"""Machines side by side: how fast each would be, with its interval, and why the others cannot."""

import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go

from planner.contracts.plan import Plan
from planner.contracts.quantities import format_s, format_tokens_per_s
from planner.contracts.recommendation import Recommendation
from planner.drafting import DRAFT_KINDS, DraftKind
from planner.figures.style import GREY, KIND_COLOURS, KIND_NAMES, MUTED, figure, from_zero, plain, rows
from planner.render import interval
from planner.what_if import Advice

_COLUMNS = 64  # of a reason in its row


def machines_figure(advice: Sequence[Advice]) -> go.Figure:
    """tok/s of each machine with P10 to P90 and the kind of draft that it is advised; the others with their reason."""
    running = [(row, entry.name, entry.recommendation) for row, entry in enumerate(advice) if entry.recommendation]
    failing = [(row, entry) for row, entry in enumerate(advice) if entry.recommendation is None]
    traces = [
        _bars(kind, [(row, name, said) for row, name, said in running if said.choice.draft_kind == kind])
        for kind in DRAFT_KINDS
    ]
    reasons = [plain(entry.why_not or "unknown") for _, entry in failing]
    traces.append(
        {
            "type": "scatter",
            "mode": "text",
            "name": "cannot",
            "x": [0] * len(failing),
            "y": [row for row, _ in failing],
            "text": [f" {textwrap.shorten(reason, _COLUMNS, placeholder=' ...')}" for reason in reasons],
            "textposition": "middle right",
            "textfont": {"color": MUTED},
            "customdata": ["<br>".join(textwrap.wrap(reason, _COLUMNS)) for reason in reasons],
            "hovertemplate": "%{customdata}<extra></extra>",
            "showlegend": False,
        }
    )
    best = f"Fastest: {plain(advice[0].name)}" if running else "None of these machines can run it"
    return figure(
        traces,
        title=best,
        subtitle="bars: median; lines: P10 to P90; colours: the draft that is best there",
        x_axis=from_zero("speed (tok/s)"),
        y_axis=rows(range(len(advice)), [entry.name for entry in advice]),
        height=170 + 30 * max(1, len(advice)),
        barmode="overlay",
        uniformtext={"minsize": 10, "mode": "hide"},
    )


def _ends(plan: Plan) -> tuple[float, float] | None:
    low, high = (
        None if end is None else end.generated_tokens_per_s for end in (plan.predicted_p10, plan.predicted_p90)
    )
    return None if low is None or high is None else (low, high)


def _bars(kind: DraftKind, entries: Sequence[tuple[int, str, Recommendation]]) -> dict[str, object]:
    """The machines whose best draft is of that kind; an interval that nobody predicted is not drawn."""
    speeds = [said.choice.tokens_per_s for _, _, said in entries]
    ends = [_ends(said.plan) for _, _, said in entries]
    return {
        "type": "bar",
        "orientation": "h",
        "name": KIND_NAMES[kind],
        "y": [row for row, _, _ in entries],
        "x": speeds,
        "width": 0.62,
        "marker": {"color": KIND_COLOURS[kind], "line": {"width": 0}},
        "text": [format_tokens_per_s(speed) for speed in speeds],
        "textposition": "inside",
        "insidetextanchor": "start",
        "textangle": 0,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [end and end[1] - speed for end, speed in zip(ends, speeds, strict=True)],
            "arrayminus": [end and speed - end[0] for end, speed in zip(ends, speeds, strict=True)],
            "color": GREY,
            "thickness": 1.5,
            "width": 4,
        },
        "customdata": [[plain(name), *_said(said)] for _, name, said in entries],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        "showlegend": bool(entries),
    }


def _said(recommendation: Recommendation) -> tuple[str, str]:
    """The speed, and how it is reached."""
    choice = recommendation.choice
    where = "everything resident" if choice.slots == 0 else f"resident: {choice.residents}"
    drafted = f"{choice.drafting} by {choice.draft}" if choice.draft else choice.drafting
    return (
        f"{format_tokens_per_s(choice.tokens_per_s)} ({interval(recommendation.plan)})",
        plain(f"{drafted}; {where}; first token after {format_s(choice.ttft_s)}"),
    )
