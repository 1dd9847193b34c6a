"""Where the time of a round goes: each cause is timed by itself, and what none of them explains is left over."""

import time
from types import TracebackType
from typing import Literal

from planner.contracts.performance import LinkSplit, RoundSplit
from runtime.trace import Trace, TraceLane
from runtime.weight_stream import StreamTimes

Cause = Literal["draft", "pass", "host"]

_TRACE_LANES: dict[Cause, TraceLane] = {"draft": "draft", "pass": "compute", "host": "host"}


class RoundClock:
    """Adds up the causes of one round at a time."""

    def __init__(self, trace: Trace | None = None) -> None:
        self._trace = trace
        self._spent_s: dict[Cause, float] = {"draft": 0.0, "pass": 0.0, "host": 0.0}
        self._round_started_s = time.perf_counter()
        self._stream = StreamTimes()

    def timing(self, cause: Cause) -> "_Span":
        """A context whose time counts for the cause."""
        return _Span(self, cause)

    def start_round(self, stream: StreamTimes) -> None:
        """Start afresh; `stream` holds the stream's times at this moment."""
        self._spent_s = {"draft": 0.0, "pass": 0.0, "host": 0.0}
        self._round_started_s = time.perf_counter()
        self._stream = stream

    def end_round(self, stream: StreamTimes) -> tuple[RoundSplit, LinkSplit | None]:
        """The round's time on both lanes, and the start of the next."""
        now_s = time.perf_counter()
        round_s = now_s - self._round_started_s
        spent_s = self._spent_s
        waited_s = min(stream.compute_waiting_s - self._stream.compute_waiting_s, spent_s["pass"])
        compute = RoundSplit(
            round_s=round_s,
            compute_s=spent_s["pass"] - waited_s,
            waiting_for_weights_s=waited_s,
            draft_s=spent_s["draft"],
            host_s=spent_s["host"],
            unexplained_s=round_s - sum(spent_s.values()),
        )
        link = _link_split(self._stream, stream)
        self.start_round(stream)
        return compute, link

    def add(self, cause: Cause, start_s: float, stop_s: float) -> None:
        """Count a span that was timed elsewhere."""
        self._spent_s[cause] += stop_s - start_s
        if self._trace is not None:
            self._trace.add(_TRACE_LANES[cause], cause, start_s, stop_s)


class _Span:
    """One span of one cause."""

    def __init__(self, clock: RoundClock, cause: Cause) -> None:
        self._clock = clock
        self._cause = cause

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.add(self._cause, self._start_s, time.perf_counter())


def _link_split(before: StreamTimes, after: StreamTimes) -> LinkSplit | None:
    if after.copied_bytes == 0:
        return None
    busy_s = after.link_busy_s - before.link_busy_s
    num_bytes = after.copied_bytes - before.copied_bytes
    return LinkSplit(
        busy_s=busy_s,
        waiting_for_slot_s=after.link_waiting_for_slot_s - before.link_waiting_for_slot_s,
        waiting_for_disk_s=after.link_waiting_for_disk_s - before.link_waiting_for_disk_s,
        bytes_per_s=num_bytes / busy_s if busy_s > 0 else None,
    )
