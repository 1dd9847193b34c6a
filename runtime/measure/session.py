"""A session takes named steps under a deadline and a journal, and watches whether the machine stays what it was.

The sentinel is one fixed measurement, taken between the steps. A step counts as disturbed by as much as the sentinel
right before or after it exceeds its best; at the end the most disturbed steps are taken again while there is time, and
where even the rest is too far off, the run is rejected.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from planner.contracts.errors import ResourceFailureError
from runtime.measure.journal import Findings, Journal

Group = Literal["links", "compute", "rounds", "memory", "acceptance"]

GROUPS: tuple[Group, ...] = ("links", "compute", "rounds", "memory", "acceptance")
MOST_DRIFT_FRAC = 0.05  # beyond, a step is taken again
REJECTED_DRIFT_FRAC = 0.25

_TIMED: tuple[Group, ...] = ("links", "compute", "rounds")
_SENTINEL = "sentinel"
_WHY_NO_STEPS: dict[Group, str] = {
    "rounds": "the model cannot roll back",
    "memory": "left out by --quick",
    "acceptance": "without prompts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One named measurement of a group; it is the least that a killed run can lose."""

    group: Group
    name: str
    run: Callable[[], Findings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The step that begins now, and how many of all are behind it."""

    group: str
    step: str
    num_done: int
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What all steps found, in their order; what there is to say about it; and how many were not taken."""

    findings: tuple[Findings, ...]
    notes: tuple[str, ...]
    drift_frac: float
    num_missing: int


class Session:
    """Takes steps of all groups in turn. `sentinel` returns seconds of a few fixed pieces of work."""

    def __init__(
        self,
        journal: Journal,
        sentinel: Callable[[], tuple[float, ...]],
        *,
        only: Collection[Group] = GROUPS,
        stop_at_s: float,
        is_quick: bool = False,
        on_progress: Callable[[Progress], None] = lambda _: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._sentinel = sentinel
        self._only = only
        self._stop_at_s = stop_at_s
        self._is_quick = is_quick
        self._on_progress = on_progress
        self._now_s = now_s
        self._took_s: dict[str, float] = {}  # by step
        self._num_done = self._num_steps = 0

    def run(self, steps: Sequence[Step], *, is_forced: bool = False) -> Outcome:
        """Take the steps that the journal does not hold yet, and once more those that were disturbed.

        Raises: ResourceFailureError, where the machine drifted beyond use, unless forced.
        """
        wanted = _in_turn([step for step in steps if step.group in self._only])
        self._num_done, self._num_steps = 0, len(wanted)
        self._take(wanted)
        if not self._is_quick:
            self._repeat_disturbed(wanted)
        drifts = self._drifts(wanted)
        drift_frac = max(drifts.values(), default=0.0)
        if drift_frac > REJECTED_DRIFT_FRAC and not is_forced:
            for name, drift in drifts.items():
                if drift > MOST_DRIFT_FRAC:
                    self._journal.drop(name)
            raise ResourceFailureError(
                "the machine was too unsteady to be measured",
                why=f"the same work took {drift_frac:.0%} more at some times than at others",
                remedy="try again when nothing else runs, or keep the result as it is with --force",
            )
        found = self._journal.found
        return Outcome(
            findings=tuple(found[step.name] for step in wanted if step.name in found),
            notes=tuple(self._notes(steps, wanted, drifts)),
            drift_frac=drift_frac,
            num_missing=sum(step.name not in found for step in wanted),
        )

    def _take(self, steps: Sequence[Step]) -> None:
        """Take what the journal lacks, until the deadline."""
        before_s: tuple[float, ...] | None = None
        for step in steps:
            if step.name not in self._journal.found and self._now_s() < self._stop_at_s:
                before_s = self._take_one(step, before_s)
            self._num_done += 1

    def _take_one(self, step: Step, before_s: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Take a step between two sentinels, of which the first may be that after the last step; returns the second."""
        self._on_progress(
            Progress(group=step.group, step=step.name, num_done=self._num_done, num_steps=self._num_steps)
        )
        is_timed = step.group in _TIMED
        if is_timed and before_s is None:
            before_s = self._sentinel()
        started_s = self._now_s()
        findings = step.run()
        self._took_s[step.name] = self._now_s() - started_s
        if findings == Findings() and self._now_s() >= self._stop_at_s:
            return None  # the deadline cut it off
        if not is_timed or before_s is None:
            self._journal.add(step.name, findings)
            return None
        after_s = self._sentinel()
        slower_s = tuple(map(max, before_s, after_s))
        faster_s = tuple(map(min, before_s, after_s))
        earlier = self._journal.found.get(step.name)
        if earlier is None or self._disturbance(slower_s) < self._disturbance(earlier.sentinel_s):
            self._journal.add(step.name, findings.model_copy(update={"sentinel_s": slower_s}))
        self._journal.add(_SENTINEL, Findings(sentinel_s=self._best_s(faster_s)))
        return after_s

    def _repeat_disturbed(self, steps: Sequence[Step]) -> None:
        """Take the most disturbed step again and again, as long as there is one and time for it."""
        by_name = {step.name: step for step in steps}
        while True:
            drifts = {name: drift for name, drift in self._drifts(steps).items() if drift > MOST_DRIFT_FRAC}
            in_time = [name for name in drifts if self._now_s() + self._took_s.get(name, 0.0) < self._stop_at_s]
            if not in_time:
                return
            self._take_one(by_name[max(in_time, key=lambda name: drifts[name])], None)

    def _drifts(self, steps: Sequence[Step]) -> dict[str, float]:
        """By how much each timed step was disturbed."""
        found = self._journal.found
        return {
            step.name: self._disturbance(found[step.name].sentinel_s)
            for step in steps
            if step.group in _TIMED and step.name in found
        }

    def _disturbance(self, sentinel_s: tuple[float, ...]) -> float:
        """By how much a sentinel exceeds the best one, at the most over its parts."""
        return max((now / best - 1 for now, best in zip(sentinel_s, self._best_s(sentinel_s), strict=True)), default=0)

    def _best_s(self, sentinel_s: tuple[float, ...]) -> tuple[float, ...]:
        """Each part of the sentinel at its best, this one included."""
        best = self._journal.found.get(_SENTINEL)
        return sentinel_s if best is None else tuple(map(min, sentinel_s, best.sentinel_s))

    def _notes(self, steps: Sequence[Step], wanted: Sequence[Step], drifts: dict[str, float]) -> Iterator[str]:
        for group in GROUPS:
            names = [step.name for step in wanted if step.group == group]
            missing = [name for name in names if name not in self._journal.found]
            drift_frac = max((drifts.get(name, 0.0) for name in names), default=0.0)
            if group not in self._only:
                yield f"{group}: not measured, left out by --only"
            elif not any(step.group == group for step in steps):
                yield f"{group}: not measured, {_WHY_NO_STEPS.get(group, 'there is nothing to take')}"
            if drift_frac > MOST_DRIFT_FRAC:
                yield f"{group}: the machine was up to {drift_frac:.1%} slower at times"
            if missing:
                yield f"{group}: {len(missing)} of {len(names)} steps not measured for lack of time"


def _in_turn(steps: Sequence[Step]) -> list[Step]:
    """The first step of each group, then the second ones, so that a deadline leaves no group without any."""
    by_group = [[step for step in steps if step.group == group] for group in GROUPS]
    return [step for turn in zip_longest(*by_group) for step in turn if step is not None]
