"""Collects the timeline of a run, for Perfetto or chrome://tracing."""

import threading
from pathlib import Path

from planner.contracts.base import write_atomically
from planner.contracts.timeline import Span, TraceLane, chrome_trace

__all__ = ["Trace", "TraceLane"]


class Trace:
    """Collects spans from several threads; times are of time.perf_counter, in seconds."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    def add(self, lane: TraceLane, name: str, start_s: float, stop_s: float) -> None:
        """Note one span of one lane."""
        with self._lock:
            self._spans.append(Span(lane=lane, label=name, start_s=start_s, stop_s=stop_s))

    def spans(self) -> tuple[Span, ...]:
        """All that was noted so far."""
        with self._lock:
            return tuple(self._spans)

    def to_json(self, label: str) -> str:
        """The trace as JSON; `label` names the process in the viewer."""
        return chrome_trace(self.spans(), label)

    def write(self, path: Path, label: str) -> None:
        """Write the trace. Raises: ResourceFailureError, where the file cannot be written."""
        write_atomically(path, self.to_json(label))
