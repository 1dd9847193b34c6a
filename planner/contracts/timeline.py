"""A timeline in the Chrome trace format, which Perfetto opens: one lane each for disk, link, compute, draft and host.

Predicted and measured timelines are written alike, so that they can be laid side by side.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TraceLane = Literal["disk", "link", "compute", "draft", "host"]

LANES: tuple[TraceLane, ...] = ("disk", "link", "compute", "draft", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one lane did from one time to another, in seconds since any origin."""

    lane: TraceLane
    label: str
    start_s: float
    stop_s: float


def chrome_trace(spans: Sequence[Span], label: str) -> str:
    """The spans as JSON, times counted from the first of them; `label` names the process in the viewer."""
    origin_s = min((span.start_s for span in spans), default=0.0)
    events: list[dict[str, object]] = [_metadata("process_name", 0, label)]
    events += [_metadata("thread_name", index, lane) for index, lane in enumerate(LANES)]
    events += [
        {
            "name": span.label,
            "ph": "X",
            "pid": 1,
            "tid": LANES.index(span.lane),
            "ts": round((span.start_s - origin_s) * 1e6, 3),
            "dur": round((span.stop_s - span.start_s) * 1e6, 3),
        }
        for span in spans
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _metadata(kind: str, lane: int, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
