"""An event simulation of a schedule: disk, link and compute are lanes that take turns, slots and buffers their stock.

The plain twin of `planner.schedule`, and nothing of its recurrence: here a clock goes from event to event, and a lane
starts its next piece of work when it is idle and finds what it needs. Both must give the same times.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from planner.contracts.timeline import Span, TraceLane
from planner.schedule import Schedule, Step, first_pass_s, round_time_s

_BUSY_ALL_ROUND = 1 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """A repeating round from the side: its length, each lane's share of it, and which lane decides it.

    `turns`: none does alone, link and compute wait for each other, which another slot can change.
    """

    round_s: float
    first_pass_s: float
    waiting_for_weights_s: float
    busy_s: dict[str, float]
    binds: Literal["disk", "link", "compute", "turns"]
    round_with_another_slot_s: float
    tokens_per_round: float | None
    generated_tokens_per_s: float | None


@dataclass(slots=True, kw_only=True)
class _Store:
    """Buffers of one kind, and the units that lie in them, in the order in which they arrived."""

    num_free: int
    arrived: deque[str] = field(default_factory=deque)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A piece of work of one lane: takes a unit out of one store, puts one into another."""

    lane: TraceLane
    label: str
    duration_s: float
    takes: _Store | None = None
    puts: _Store | None = None


class _Lane:
    """Works off its jobs in order, one at a time; what a job takes lies in its buffer until the job ends."""

    def __init__(self, jobs: Iterator[_Job]) -> None:
        self._jobs = jobs
        self._next = next(jobs, None)
        self._current: _Job | None = None

    def start(self) -> _Job | None:
        """Begin the next job if the lane is idle, its unit has arrived and a buffer for the result is free."""
        job = self._next
        if self._current is not None or job is None:
            return None
        if (job.takes is not None and not job.takes.arrived) or (job.puts is not None and job.puts.num_free == 0):
            return None
        if job.takes is not None:
            label = job.takes.arrived.popleft()
            assert label == job.label, f"{label} arrived where {job.label} was due"
        if job.puts is not None:
            job.puts.num_free -= 1
        self._current, self._next = job, next(self._jobs, None)
        return job

    def end(self) -> None:
        """The current job is done: its source buffer is free, its result has arrived."""
        job = self._current
        assert job is not None
        if job.takes is not None:
            job.takes.num_free += 1
        if job.puts is not None:
            job.puts.arrived.append(job.label)
        self._current = None


def view_round(schedule: Schedule, tokens_per_round: float | None) -> RoundView:
    """The round of a schedule; compute includes the time between passes. Times by the recurrence."""
    round_s = round_time_s(schedule)
    streamed = [step for step in schedule.steps if step.is_streamed]
    compute_s = sum(step.compute_s for step in schedule.steps)
    busy_s: dict[Literal["disk", "link", "compute"], float] = {
        "disk": sum(step.read_s for step in streamed),
        "link": sum(step.copy_s for step in streamed),
        "compute": compute_s + schedule.boundary_s,
    }
    return RoundView(
        round_s=round_s,
        first_pass_s=first_pass_s(schedule),
        waiting_for_weights_s=max(0.0, round_s - busy_s["compute"]),
        busy_s={
            lane: lane_s
            for lane, lane_s in (*busy_s.items(), ("compute", compute_s), ("draft and host", schedule.boundary_s))
            if lane_s > 0
        },
        binds=next((lane for lane, lane_s in busy_s.items() if lane_s >= round_s * _BUSY_ALL_ROUND), "turns"),
        round_with_another_slot_s=round_time_s(replace(schedule, num_slots=schedule.num_slots + 1)),
        tokens_per_round=tokens_per_round,
        generated_tokens_per_s=tokens_per_round / round_s if tokens_per_round is not None and round_s > 0 else None,
    )


def simulate(schedule: Schedule, num_rounds: int) -> tuple[Span, ...]:
    """What each lane does in one pass from empty slots and the rounds after it, in the order of the starts."""
    num_passes = num_rounds + 1
    streamed = [step for step in schedule.steps if step.is_streamed]
    staged = [step for step in streamed if step.read_s > 0]
    slots = _Store(num_free=min(schedule.num_slots, len(streamed)))
    staging = _Store(num_free=min(schedule.num_staging_buffers, len(staged)))
    lanes = [
        _Lane(_reads(staged, num_passes, staging)),
        _Lane(_copies(streamed, num_passes, staging, slots)),
        _Lane(_computations(schedule, num_passes, slots)),
    ]
    spans: list[Span] = []
    ends: list[tuple[float, int]] = []
    now_s = 0.0
    while True:
        started = [(index, job) for index, lane in enumerate(lanes) if (job := lane.start()) is not None]
        for index, job in started:
            spans.append(Span(lane=job.lane, label=job.label, start_s=now_s, stop_s=now_s + job.duration_s))
            heapq.heappush(ends, (now_s + job.duration_s, index))
        if not ends:
            return tuple(spans)
        now_s, index = heapq.heappop(ends)
        lanes[index].end()


def _reads(staged: list[Step], num_passes: int, staging: _Store) -> Iterator[_Job]:
    for _ in range(num_passes):
        for step in staged:
            yield _Job(lane="disk", label=step.label, duration_s=step.read_s, puts=staging)


def _copies(streamed: list[Step], num_passes: int, staging: _Store, slots: _Store) -> Iterator[_Job]:
    for _ in range(num_passes):
        for step in streamed:
            source = staging if step.read_s > 0 else None
            yield _Job(lane="link", label=step.label, duration_s=step.copy_s, takes=source, puts=slots)


def _computations(schedule: Schedule, num_passes: int, slots: _Store) -> Iterator[_Job]:
    for index in range(num_passes):
        if index and schedule.boundary_s > 0:
            yield _Job(lane="draft", label="draft", duration_s=schedule.boundary_s)
        for step in schedule.steps:
            source = slots if step.is_streamed else None
            yield _Job(lane="compute", label=step.label, duration_s=step.compute_s, takes=source)
