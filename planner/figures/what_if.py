"""The figures of what-if: a round's parts and the prices here, the others beside.

Each keeps its number of traces whatever its data, so that a live figure is updated in place.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from planner.contracts.quantities import format_s, format_tokens_per_s, time_unit
from planner.contracts.recommendation import Price
from planner.contracts.timeline import TraceLane
from planner.figures.lanes import last_round, timeline_figure
from planner.figures.lengths import lengths_figure
from planner.figures.machines import machines_figure
from planner.figures.memory import memory_figure
from planner.figures.strategy_map import Here, map_figure
from planner.figures.style import (
    IDLE_COLOUR,
    IDLE_PATTERN,
    LANE_COLOURS,
    MUTED,
    SKY,
    figure,
    from_zero,
    plain,
    rows,
)
from planner.what_if import RoundParts

__all__ = [
    "Here",
    "last_round",
    "lengths_figure",
    "machines_figure",
    "map_figure",
    "memory_figure",
    "prices_figure",
    "round_figure",
    "timeline_figure",
]

_Look = dict[str, object]

_HATCHED: _Look = {
    "marker": {"pattern": IDLE_PATTERN, "line": {"width": 0}},
    "insidetextfont": {"color": MUTED},
}
_PALE: _Look = {
    "marker": {"color": IDLE_COLOUR, "line": {"width": 0}},
    "insidetextfont": {"color": MUTED},
}


def round_figure(parts: Sequence[RoundParts]) -> go.Figure:
    """Where a round's time goes, by way to draft: above what the device does and waits for, below the transfers."""
    unit, size_s = time_unit(max((part.round_s for part in parts), default=0.0))
    has_disk = any(part.disk_s > 0 for part in parts)
    thick = 0.26 if has_disk else 0.38
    above, link, disk = (-thick, 0.0, thick) if has_disk else (-thick / 2, thick / 2, 0.0)
    lanes: list[tuple[str, float, list[float], _Look]] = [
        ("compute", above, [part.compute_s for part in parts], _filled("compute")),
        ("draft", above, [part.draft_s for part in parts], _filled("draft")),
        ("host", above, [part.host_s for part in parts], _filled("host")),
        ("waiting for weights", above, [part.waiting_s for part in parts], _HATCHED),
        ("copy over the link", link, [part.link_s for part in parts], _filled("link")),
        ("link idle", link, [part.link_idle_s for part in parts], _PALE),
        ("disk read", disk, [part.disk_s for part in parts], _filled("disk")),
    ]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": [index + offset for index in range(len(parts))],
            "x": [seconds / size_s for seconds in spent_s],
            "width": thick * 0.9,
            **look,
            "text": [format_s(seconds) for seconds in spent_s],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "customdata": [[plain(part.label), format_s(part.round_s)] for part in parts],
            "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{name}: %{{text}} of %{{customdata[1]}}<extra></extra>",
            "showlegend": any(spent_s),
        }
        for name, offset, spent_s, look in lanes
    ]
    return figure(
        traces,
        title="Where a round's time goes",
        subtitle="above: what computes; below: what brings the weights meanwhile",
        x_axis=from_zero(f"time of a round ({unit})"),
        y_axis=rows(range(len(parts)), [part.label for part in parts]),
        height=150 + 62 * max(1, len(parts)),
        barmode="stack",
        uniformtext={"minsize": 10, "mode": "hide"},
    )


def _filled(lane: TraceLane) -> _Look:
    return {"marker": {"color": LANE_COLOURS[lane], "line": {"width": 0}}}


def prices_figure(prices: Sequence[Price]) -> go.Figure:
    """What a little more of each thing would give, in tok/s."""
    ordered = sorted(prices, key=lambda price: -price.gain_tokens_per_s)
    gains = [price.gain_tokens_per_s for price in ordered]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(ordered))),
        "x": gains,
        "marker": {"color": SKY},
        "width": 0.6,
        "text": [f"+{format_tokens_per_s(gain)}" for gain in gains],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{text}<extra></extra>",
    }
    return figure(
        [trace],
        title="What a little more would give",
        subtitle="each with the best plan made anew",
        x_axis=from_zero("gained speed (tok/s)", range=[0, 1.4 * max([*gains, 1e-9])]),
        y_axis=rows(range(len(ordered)), [price.what for price in ordered]),
        height=140 + 34 * max(1, len(ordered)),
        showlegend=False,
    )
