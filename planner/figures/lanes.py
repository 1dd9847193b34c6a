"""The timeline of a round as lanes: copies above, compute and draft below, and where the link stands still."""

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from planner.contracts.quantities import format_s, time_unit
from planner.contracts.timeline import LANES, Span, TraceLane
from planner.figures.style import IDLE_PATTERN, LANE_COLOURS, LANE_NAMES, faded, figure, from_zero, plain

Window = tuple[float, float]  # seconds


def last_round(spans: Sequence[Span]) -> Window:
    """From the end of the last pass but one to the end of the last; of a single pass, all of it.

    A pass ends with what the compute lane does last, so the passes must be of the same units.
    """
    computed = sorted((span for span in spans if span.lane == "compute"), key=lambda span: span.stop_s)
    if not computed:
        return _whole(spans)
    last = computed[-1]
    before = [span.stop_s for span in computed[:-1] if span.label == last.label]
    return (before[-1] if before else _whole(spans)[0], last.stop_s)


def timeline_figure(spans: Sequence[Span], window: Window | None = None, *, title: str = "One round") -> go.Figure:
    """What each lane does within the window, which is the last round unless it is given; times count from its start."""
    start_s, stop_s = window or last_round(spans)
    unit, size_s = time_unit(stop_s - start_s)
    shown = [span for span in spans if span.stop_s > start_s and span.start_s < stop_s]
    by_lane = {lane: [_within(span, start_s, stop_s) for span in shown if span.lane == lane] for lane in LANES}
    present = [lane for lane in LANES if by_lane[lane]]
    traces = [lane_bars(lane, by_lane[lane], size_s) for lane in LANES]
    gaps = list(link_gaps(by_lane["link"], stop_s - start_s)) if "link" in present else []
    idle_s = sum(gap.stop_s - gap.start_s for gap in gaps)
    idle = lane_bars("link", gaps, size_s)
    traces.append({**idle, "name": "link idle", "marker": {"pattern": IDLE_PATTERN, "line": {"width": 0}}})
    total = format_s(stop_s - start_s)
    said = f"the link moves weights {1 - idle_s / max(stop_s - start_s, 1e-12):.0%} of {total}"
    return figure(
        traces,
        title=title,
        subtitle=said if "link" in present else f"nothing travels; {total}",
        x_axis=from_zero(f"time ({unit})", range=[0, (stop_s - start_s) / size_s]),
        y_axis={
            "categoryorder": "array",
            "categoryarray": [LANE_NAMES[lane] for lane in reversed(present)],
            "showgrid": False,
        },
        height=140 + 44 * max(1, len(present)),
        barmode="overlay",
        bargap=0.25,
        showlegend=False,
    )


def _whole(spans: Sequence[Span]) -> Window:
    return min((span.start_s for span in spans), default=0.0), max((span.stop_s for span in spans), default=0.0)


def _within(span: Span, start_s: float, stop_s: float) -> Span:
    """What lies in the window of a span, in seconds since the window's start."""
    return Span(
        lane=span.lane,
        label=span.label,
        start_s=max(span.start_s, start_s) - start_s,
        stop_s=min(span.stop_s, stop_s) - start_s,
    )


def link_gaps(spans: Sequence[Span], length_s: float) -> Iterator[Span]:
    """Where the link does nothing, from 0 s to the length."""
    free_s = 0.0
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.start_s > free_s:
            yield Span(lane="link", label="link idle", start_s=free_s, stop_s=span.start_s)
        free_s = max(free_s, span.stop_s)
    if length_s > free_s:
        yield Span(lane="link", label="link idle", start_s=free_s, stop_s=length_s)


def lane_bars(lane: TraceLane, spans: Sequence[Span], size_s: float) -> dict[str, object]:
    """One bar per span; every other one paler, so that neighbours can be told apart."""
    colour = LANE_COLOURS[lane]
    return {
        "type": "bar",
        "orientation": "h",
        "name": LANE_NAMES[lane],
        "y": [LANE_NAMES[lane]] * len(spans),
        "base": [span.start_s / size_s for span in spans],
        "x": [(span.stop_s - span.start_s) / size_s for span in spans],
        "marker": {
            "color": [colour if index % 2 else faded(colour, 0.7) for index in range(len(spans))],
            "line": {"width": 0},
        },
        "customdata": [f"{plain(span.label)}: {format_s(span.stop_s - span.start_s)}" for span in spans],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
