"""The figures of what-if: tok/s by draft length, a round's parts, memory, prices, machines; lanes and map from beside.

Each keeps its number of traces whatever its data, so that a live figure is updated in place.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from planner.contracts.plan import Plan
from planner.contracts.quantities import bytes_unit, format_bytes, format_s, format_tokens_per_s, time_unit
from planner.contracts.recommendation import Price
from planner.figures.lanes import last_round, timeline_figure
from planner.figures.machines import machines_figure
from planner.figures.marks import band
from planner.figures.strategy_map import Here, map_figure
from planner.figures.style import (
    BLUE,
    GREEN,
    GREY,
    IDLE_COLOUR,
    IDLE_PATTERN,
    KIND_COLOURS,
    LANE_COLOURS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    faded,
    figure,
    from_zero,
    plain,
    rows,
)
from planner.show_plan import DEVICE_PARTS, HOST_PARTS
from planner.what_if import LengthCurve, RoundParts

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

_MEMORY_COLOURS = {  # of MemorySplit, without _bytes
    "residents": GREEN,
    "slots": SKY,
    "draft": PURPLE,
    "target_kv": BLUE,
    "draft_kv": faded(BLUE, 0.55),
    "activations": ORANGE,
    "overhead": VERMILLION,
    "margin": GREY,
    "host_weights": faded(SKY, 0.6),
    "host_embedding": faded(GREEN, 0.6),
    "host_staging": YELLOW,
    "host_draft": faded(PURPLE, 0.6),
    "host_overhead": faded(VERMILLION, 0.6),
}


def lengths_figure(curve: LengthCurve) -> go.Figure:
    """tok/s against the length of a draft's chains, with P10 to P90, the best, where drafting pays, and no draft."""
    lengths = [point.draft_len for point in curve.points]
    bands = [point.tokens_per_s for point in curve.points]
    end = lengths[-1] + 1
    best, no_draft = curve.best, format_tokens_per_s(curve.plain.p50)
    drawn, grey = KIND_COLOURS["chain"], KIND_COLOURS["none"]
    gain = best.tokens_per_s.p50 / curve.plain.p50
    is_paying = curve.crossover.first_draft_len is not None
    said = [
        f"{format_tokens_per_s(band.p50)} (P10-P90 {band.p10:.3g}-{band.p90:.3g})<br>"
        f"{point.tokens_per_round:.2f} tokens per round of {format_s(point.round_s)}"
        for point, band in zip(curve.points, bands, strict=True)
    ]
    plain_said = f"no draft: {no_draft} (P10-P90 {curve.plain.p10:.3g}-{curve.plain.p90:.3g})"
    traces: list[dict[str, object]] = [
        band([0, end], [curve.plain.p10] * 2, [curve.plain.p90] * 2, grey, "no draft, P10 to P90"),
        band(lengths, [band.p10 for band in bands], [band.p90 for band in bands], drawn, "P10 to P90"),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "no draft",
            "x": [0, end],
            "y": [curve.plain.p50] * 2,
            "line": {"color": grey, "width": 2, "dash": "dash"},
            "hovertemplate": f"{plain_said}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "median (P50)",
            "x": lengths,
            "y": [band.p50 for band in bands],
            "line": {"color": drawn, "width": 2.5},
            "marker": {"size": 5},
            "customdata": said,
            "hovertemplate": "<b>chain of %{x}</b><br>%{customdata}<extra></extra>",
        },
        _crossings(curve),
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"best: {best.draft_len}",
            "x": [best.draft_len],
            "y": [best.tokens_per_s.p50],
            "marker": {"symbol": "star", "size": 16, "color": ORANGE, "line": {"color": drawn, "width": 1}},
            "hoverinfo": "skip",
        },
    ]
    answer = (
        f"{_tokens(best.draft_len)} drafted in a round: {format_tokens_per_s(best.tokens_per_s.p50)}"
        if is_paying
        else "A chain pays at no length"
    )
    return figure(
        traces,
        title=answer,
        subtitle=f"{gain:.2f} times no draft ({no_draft}); draft: {plain(curve.draft)}",
        x_axis=from_zero("draft length (tokens in a round)", range=[0, end]),
        y_axis=from_zero("speed (tok/s)"),
    )


def round_figure(parts: Sequence[RoundParts]) -> go.Figure:
    """Where a round's time goes, by way to draft: above what the device does and waits for, below the transfers."""
    unit, size_s = time_unit(max((part.round_s for part in parts), default=0.0))
    has_disk = any(part.disk_s > 0 for part in parts)
    thick = 0.26 if has_disk else 0.38
    above, link, disk = (-thick, 0.0, thick) if has_disk else (-thick / 2, thick / 2, 0.0)
    lanes: list[tuple[str, float, list[float], dict[str, object]]] = [
        ("compute", above, [part.compute_s for part in parts], {"color": LANE_COLOURS["compute"]}),
        ("draft", above, [part.draft_s for part in parts], {"color": LANE_COLOURS["draft"]}),
        ("host", above, [part.host_s for part in parts], {"color": LANE_COLOURS["host"]}),
        ("waiting for weights", above, [part.waiting_s for part in parts], {"pattern": IDLE_PATTERN}),
        ("copy over the link", link, [part.link_s for part in parts], {"color": LANE_COLOURS["link"]}),
        ("link idle", link, [part.link_idle_s for part in parts], {"color": IDLE_COLOUR}),
        ("disk read", disk, [part.disk_s for part in parts], {"color": LANE_COLOURS["disk"]}),
    ]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": [index + offset for index in range(len(parts))],
            "x": [seconds / size_s for seconds in spent_s],
            "width": thick * 0.9,
            "marker": {"line": {"width": 0}, **marker},
            "text": [format_s(seconds) for seconds in spent_s],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "customdata": [[plain(part.label), format_s(part.round_s)] for part in parts],
            "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{name}: %{{text}} of %{{customdata[1]}}<extra></extra>",
            "showlegend": any(spent_s),
        }
        for name, offset, spent_s, marker in lanes
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


def memory_figure(plan: Plan) -> go.Figure:
    """Where memory goes: the device's against its budget, and the host's."""
    memory, device = plan.memory, plan.devices[0]
    free_bytes = max(0, device.budget_bytes - memory.device_bytes)
    unit, size_bytes = bytes_unit(max(device.budget_bytes, memory.host_bytes))
    host_row = "host" if device.name != "cpu" else "beside it"
    parts = [(device.name, name, memory_name, DEVICE_PARTS[name][1]) for name, memory_name in _fields(DEVICE_PARTS)]
    parts += [(host_row, name, memory_name, HOST_PARTS[name][1]) for name, memory_name in _fields(HOST_PARTS)]
    traces = [
        _memory_bar(row, getattr(memory, field), size_bytes, label, {"color": _MEMORY_COLOURS[name]})
        for row, name, field, label in parts
    ]
    traces.append(_memory_bar(device.name, free_bytes, size_bytes, "free", {"pattern": IDLE_PATTERN}))
    budget = device.budget_bytes / size_bytes
    return figure(
        traces,
        title=f"{format_bytes(memory.device_bytes)} of {format_bytes(device.budget_bytes)} on {plain(device.name)}",
        subtitle=f"and {format_bytes(memory.host_bytes)} of host memory",
        x_axis=from_zero(f"memory ({unit})"),
        y_axis={"autorange": "reversed", "showgrid": False},
        height=300,
        barmode="stack",
        shapes=[{"type": "line", "x0": budget, "x1": budget, "y0": -0.5, "y1": 0.5, "line": {"width": 2}}],
        annotations=[{"text": "budget", "x": budget, "y": -0.5, "yanchor": "bottom", "showarrow": False}],
    )


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
        "textposition": "auto",
        "cliponaxis": False,
        "hovertemplate": "%{text}<extra></extra>",
    }
    return figure(
        [trace],
        title="What a little more would give",
        subtitle="each with the best plan made anew",
        x_axis=from_zero("gained speed (tok/s)", range=[0, 1.15 * max([*gains, 1e-9])]),
        y_axis=rows(range(len(ordered)), [price.what for price in ordered]),
        height=140 + 34 * max(1, len(ordered)),
        showlegend=False,
    )


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _fields(parts: dict[str, tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Each part's name, and that of its field."""
    return [(name, f"{name}_bytes") for name in parts]


def _memory_bar(row: str, num_bytes: int, size_bytes: int, label: str, marker: dict[str, object]) -> dict[str, object]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": label,
        "y": [plain(row)],
        "x": [num_bytes / size_bytes],
        "width": 0.62,
        "marker": {"line": {"width": 0}, **marker},
        "text": [format_bytes(num_bytes)],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "hovertemplate": f"{label}: %{{text}}<extra></extra>",
        "showlegend": num_bytes > 0,
        "legendgroup": label,
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
    at = {point.draft_len: point.tokens_per_s.p50 for point in curve.points}
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "where it pays",
        "x": list(words),
        "y": [at[length] for length in words],
        "text": [", ".join(said) for said in words.values()],
        "textposition": "top right",
        "marker": {"symbol": "diamond-open", "size": 11, "color": VERMILLION, "line": {"width": 2}},
        "hoverinfo": "skip",
        "showlegend": bool(words),
    }
