"""A timeline of a run in the Chrome trace format, which Perfetto opens: one lane each for link, compute and draft."""

import json
import threading
from pathlib import Path
from typing import Literal

from planner.contracts.base import write_atomically

TraceLane = Literal["link", "compute", "draft", "host"]

_LANES: tuple[TraceLane, ...] = ("link", "compute", "draft", "host")


class Trace:
    """Collects spans from several threads; times are of time.perf_counter, in seconds."""

    def __init__(self) -> None:
        self._spans: list[tuple[TraceLane, str, float, float]] = []
        self._lock = threading.Lock()

    def add(self, lane: TraceLane, name: str, start_s: float, stop_s: float) -> None:
        """Note one span of one lane."""
        with self._lock:
            self._spans.append((lane, name, start_s, stop_s))

    def to_json(self, label: str) -> str:
        """The trace as JSON; `label` names the process in the viewer."""
        with self._lock:
            spans = list(self._spans)
        origin_s = min((start_s for _, _, start_s, _ in spans), default=0.0)
        events: list[dict[str, object]] = [_metadata("process_name", 0, label)]
        events += [_metadata("thread_name", index, lane) for index, lane in enumerate(_LANES)]
        events += [
            {
                "name": name,
                "ph": "X",
                "pid": 1,
                "tid": _LANES.index(lane),
                "ts": round((start_s - origin_s) * 1e6, 3),
                "dur": round((stop_s - start_s) * 1e6, 3),
            }
            for lane, name, start_s, stop_s in spans
        ]
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})

    def write(self, path: Path, label: str) -> None:
        """Write the trace. Raises: ResourceFailureError, where the file cannot be written."""
        write_atomically(path, self.to_json(label))


def _metadata(kind: str, lane: int, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
