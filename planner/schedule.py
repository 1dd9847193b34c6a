"""The schedule of a round: when each unit is read, copied and computed, and how long a round takes once it repeats.

Streamed units j in pass order, cyclic over passes; copy x, compute c, N slots; r is all other work of the compute lane
before j (other units, and at the pass boundary the draft); units from disk, i in their own order, pass N_s buffers:

    Q_i = max(Q_(i-1), F of staged unit i - N_s) + y_i     read from disk
    F_j = max(F_(j-1), G_(j-N), Q_i if j is staged) + x_j  copied
    G_j = max(G_(j-1) + r_j, F_j) + c_j                    computed

Only maxima and sums, so that one pass is a max-plus linear map of the few times that the next pass depends on: when the
compute lane, the link and the disk are done, and when each slot and buffer becomes free. The round time, the limit of
G_(j+m) - G_j, is that map's largest cycle mean. It lies between the least and the most that one pass adds to them: a
pass that adds the same to all has found it, which the second one mostly does. Where lanes nearly tie, Karp's formula
takes it from as many passes as there are such times: nothing has to converge, and no transient is too long.

Not here: several copies at a time, jitter, what the lanes take from each other (the times are those under load).
Source: Baccelli et al., Synchronization and Linearity, 1992, ch. 3; Karp, Discrete Mathematics 23 (1978), theorem 1.
"""

import math
from collections import deque
from dataclasses import dataclass

from planner.contracts.errors import BadInputError
from planner.contracts.plan import Plan, Unit
from planner.contracts.timeline import Span

SAME_STEP_FRAC = 1e-9  # steps closer than this differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One unit in pass order. What does not travel has no copy, and what comes from host memory no read."""

    label: str
    is_streamed: bool
    compute_s: float
    copy_s: float = 0.0
    read_s: float = 0.0  # from disk into a staging buffer, before the copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The units of a pass, the buffers they go through, and the draft and host time between two passes.

    Of slots and staging buffers no more are used than there are units that go through them, as in the runtime.
    """

    steps: tuple[Step, ...]
    num_slots: int
    boundary_s: float
    num_staging_buffers: int = 2


def schedule_of(plan: Plan) -> Schedule:
    """The schedule that a plan predicts for its verify passes.

    Raises: BadInputError, where the plan does not say how long its units and rounds take.
    """
    times = [_predicted_times_s(plan, unit) for unit in plan.units]
    missing = [
        f"{unit.kind} {unit.index} {name}"
        for unit, unit_times in zip(plan.units, times, strict=True)
        for name, duration_s in unit_times.items()
        if duration_s is None
    ]
    if plan.predicted.round is None:
        missing.append("predicted.round")
    if missing:
        raise _no_times(f"missing: {', '.join(missing[:3])}" + f" and {len(missing) - 3} more" * (len(missing) > 3))
    if any(unit.placement == "routed" for unit in plan.units):
        raise _no_times("routed experts have no fixed place in a pass")
    assert plan.predicted.round is not None
    return Schedule(
        steps=tuple(
            Step(
                label=f"{unit.kind} {unit.index}",
                is_streamed=unit.placement == "streamed",
                compute_s=unit_times["compute_s"] or 0.0,
                copy_s=unit_times.get("copy_s") or 0.0,
                read_s=unit_times.get("read_s") or 0.0,
            )
            for unit, unit_times in zip(plan.units, times, strict=True)
        ),
        num_slots=plan.slots,
        boundary_s=plan.predicted.round.draft_s + plan.predicted.round.host_s,
        num_staging_buffers=plan.staging.num_buffers if plan.staging is not None else 0,
    )


def round_time_s(schedule: Schedule) -> float:
    """Seconds of a round once it repeats: the largest cycle mean, exact up to rounding (module docstring)."""
    state = _State.cold(schedule)
    times = [state.times_s()]
    num_passes = len(times[0])
    for _ in range(num_passes):
        _run_pass(schedule, state, boundary_s=schedule.boundary_s)
        times.append(state.times_s())
        steps_s = [after - before for after, before in zip(times[-1], times[-2], strict=True)]
        if math.isclose(min(steps_s), max(steps_s), rel_tol=SAME_STEP_FRAC):
            return max(steps_s)
    return max(
        min((last_s - times[k][place]) / (num_passes - k) for k in range(num_passes))
        for place, last_s in enumerate(times[-1])
    )


def first_pass_s(schedule: Schedule) -> float:
    """Seconds of one pass that starts with empty slots, as the first pass of a prefill does."""
    return passes_s(schedule, 1)


def passes_s(schedule: Schedule, num_passes: int) -> float:
    """Seconds of several passes from empty slots, the boundary between each two of them.

    Once a pass has moved all times on by the same, every later one does so too, and none of them needs to be run.
    """
    state = _State.cold(schedule)
    times_s = state.times_s()
    for index in range(num_passes):
        _run_pass(schedule, state, boundary_s=schedule.boundary_s if index else 0.0)
        before_s, times_s = times_s, state.times_s()
        steps_s = [after - before for after, before in zip(times_s, before_s, strict=True)]
        if index and math.isclose(min(steps_s), max(steps_s), rel_tol=SAME_STEP_FRAC):
            return state.computed_s + (num_passes - 1 - index) * steps_s[0]
    return state.computed_s


def timeline(schedule: Schedule, num_rounds: int) -> tuple[Span, ...]:
    """What each lane does in one pass from empty slots, such as a prefill, and in the rounds after it."""
    state = _State.cold(schedule)
    spans: list[Span] = []
    for index in range(num_rounds + 1):
        _run_pass(schedule, state, boundary_s=schedule.boundary_s if index else 0.0, spans=spans)
    return tuple(spans)


def lower_bound_s(
    *, num_layers: int, num_streamed: int, copy_s: float, compute_s: float, boundary_s: float, num_slots: int
) -> float:
    """Seconds that no round of equal layers goes below, wherever the residents lie: link, compute, and the draft burst.

    Tight for compute_s / copy_s <= 0.5 where residents are spread evenly in the interior; above, `round_time_s` can be
    up to 7 % higher with two slots. With one slot nothing but residents and the boundary overlaps with copies.
    """
    assert 0 <= num_streamed <= num_layers
    all_compute_s = num_layers * compute_s + boundary_s
    if num_streamed == 0:
        return all_compute_s
    num_slots = min(num_slots, num_streamed)
    if num_slots == 1:
        not_hidden_s = num_streamed * compute_s
        links_s = max(num_streamed * copy_s, (num_streamed - 1) * copy_s + boundary_s)
        return max(links_s + not_hidden_s, all_compute_s)
    burst_s = (num_streamed - num_slots) * copy_s + boundary_s + 2 * compute_s
    return max(num_streamed * copy_s, all_compute_s, burst_s)


def _no_times(why: str) -> BadInputError:
    return BadInputError("the plan has no schedule", why=why, remedy="plan with planner recommend")


def _predicted_times_s(plan: Plan, unit: Unit) -> dict[str, float | None]:
    """The times that say what a unit takes, by the plan's names for them; over the disk link the copy is the read."""
    times: dict[str, float | None] = {"compute_s": unit.compute_s}
    if unit.placement == "streamed":
        times["copy_s"] = unit.copy_s
        if unit.source == "disk" and plan.link.kind != "disk":
            times["read_s"] = unit.read_s
    return times


# --- one schedule ---


@dataclass(slots=True, kw_only=True)
class _State:
    """All that the next pass depends on: when each lane is done, and when each buffer becomes free, oldest first."""

    computed_s: float
    copied_s: float
    read_s: float
    freed_s: deque[float]  # of the slots
    emptied_s: deque[float]  # of the staging buffers

    @classmethod
    def cold(cls, schedule: Schedule) -> "_State":
        """Every lane idle and every buffer free, from 0 s on."""
        num_streamed = sum(step.is_streamed for step in schedule.steps)
        num_staged = sum(step.is_streamed and step.read_s > 0 for step in schedule.steps)
        num_slots = min(schedule.num_slots, num_streamed)
        num_buffers = min(schedule.num_staging_buffers, num_staged)
        assert num_slots or not num_streamed, "streamed units need a slot"
        assert num_buffers or not num_staged, "units from disk need a staging buffer"
        return cls(
            computed_s=0.0,
            copied_s=0.0,
            read_s=0.0,
            freed_s=deque([0.0] * num_slots, maxlen=num_slots),
            emptied_s=deque([0.0] * num_buffers, maxlen=num_buffers),
        )

    def times_s(self) -> tuple[float, ...]:
        """The state as a vector; without the disk where nothing is read."""
        disk_s = (self.read_s, *self.emptied_s) if self.emptied_s else ()
        return (self.computed_s, self.copied_s, *self.freed_s, *disk_s)


def _run_pass(schedule: Schedule, state: _State, *, boundary_s: float, spans: list[Span] | None = None) -> None:
    """Advance the state by the boundary and one pass, and note what the lanes did."""
    computed_s = state.computed_s + boundary_s
    if spans is not None and boundary_s > 0:
        spans.append(Span(lane="draft", label="draft", start_s=state.computed_s, stop_s=computed_s))
    for step in schedule.steps:
        start_s = computed_s
        if step.is_streamed:
            copy_start_s = max(state.copied_s, state.freed_s[0])
            if step.read_s > 0:
                read_start_s = max(state.read_s, state.emptied_s[0])
                state.read_s = read_start_s + step.read_s
                copy_start_s = max(copy_start_s, state.read_s)
                state.emptied_s.append(copy_start_s + step.copy_s)
                if spans is not None:
                    spans.append(Span(lane="disk", label=step.label, start_s=read_start_s, stop_s=state.read_s))
            state.copied_s = copy_start_s + step.copy_s
            start_s = max(computed_s, state.copied_s)
            state.freed_s.append(start_s + step.compute_s)
            if spans is not None:
                spans.append(Span(lane="link", label=step.label, start_s=copy_start_s, stop_s=state.copied_s))
        computed_s = start_s + step.compute_s
        if spans is not None:
            spans.append(Span(lane="compute", label=step.label, start_s=start_s, stop_s=computed_s))
    state.computed_s = computed_s
