"""Where memory goes: what a plan takes of the device's budget, and of the host."""

import plotly.graph_objects as go

from planner.contracts.plan import Plan
from planner.contracts.quantities import bytes_unit, format_bytes
from planner.figures.style import (
    BLUE,
    GREEN,
    GREY,
    IDLE_PATTERN,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    figure,
    from_zero,
    plain,
    tint,
)
from planner.show_plan import DEVICE_PARTS, HOST_PARTS

_COLOURS = {  # of MemorySplit's parts, without _bytes
    "residents": GREEN,
    "slots": SKY,
    "draft": PURPLE,
    "target_kv": BLUE,
    "draft_kv": tint(BLUE, 0.7),
    "activations": ORANGE,
    "overhead": VERMILLION,
    "margin": GREY,
    "host_weights": tint(SKY, 0.6),
    "host_embedding": tint(GREEN, 0.6),
    "host_staging": YELLOW,
    "host_draft": PURPLE,
    "host_overhead": VERMILLION,
}
_DEVICE_ROW, _HOST_ROW = 0, 1


def memory_figure(plan: Plan) -> go.Figure:
    """The parts of device and host memory, the device's against its budget."""
    memory, device = plan.memory, plan.devices[0]
    longest_bytes = max(device.budget_bytes, memory.host_bytes)
    unit, size_bytes = bytes_unit(longest_bytes)
    parts = [(name, label, _DEVICE_ROW) for name, (_, label, _) in DEVICE_PARTS.items()]
    parts += [(name, label, _HOST_ROW) for name, (_, label, _) in HOST_PARTS.items()]
    traces: list[dict[str, object]] = []
    named: set[str] = set()
    for name, label, row in parts:
        num_bytes = getattr(memory, f"{name}_bytes")
        bar = _bar(label, num_bytes, row, size_bytes)
        shows = num_bytes > 0 and label not in named
        named |= {label} if shows else set()
        traces.append({**bar, "marker": {"color": _COLOURS[name], "line": {"width": 0}}, "showlegend": shows})
    free = _bar("free", max(0, device.budget_bytes - memory.device_bytes), _DEVICE_ROW, size_bytes)
    hatched = {"pattern": IDLE_PATTERN, "line": {"width": 0}}
    traces.append({**free, "marker": hatched, "insidetextfont": {"color": MUTED}})
    budget = device.budget_bytes / size_bytes
    is_far = 2 * device.budget_bytes > longest_bytes
    return figure(
        traces,
        title=f"{format_bytes(memory.device_bytes)} of {format_bytes(device.budget_bytes)} on {plain(device.name)}",
        subtitle=f"and {format_bytes(memory.host_bytes)} of host memory",
        x_axis=from_zero(f"memory ({unit})", range=[0, 1.02 * longest_bytes / size_bytes]),
        y_axis={
            "tickvals": [_DEVICE_ROW, _HOST_ROW],
            "ticktext": [plain(device.name), "beside it" if device.name == "cpu" else "host"],
            "range": [1.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        height=320,
        barmode="stack",
        uniformtext={"minsize": 10, "mode": "hide"},
        shapes=[{"type": "line", "x0": budget, "x1": budget, "y0": -0.42, "y1": 0.5, "line": {"width": 2}}],
        annotations=[
            {"text": f" budget {format_bytes(device.budget_bytes)} ", "x": budget, "y": 0.5, "showarrow": False}
            | {"xanchor": "right" if is_far else "left", "yanchor": "middle"}
        ],
    )


def _bar(label: str, num_bytes: int, row: int, size_bytes: int) -> dict[str, object]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": label,
        "y": [row],
        "x": [num_bytes / size_bytes],
        "width": 0.62,
        "text": [format_bytes(num_bytes)],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "hovertemplate": f"{label}: %{{text}}<extra></extra>",
        "showlegend": num_bytes > 0,
    }
