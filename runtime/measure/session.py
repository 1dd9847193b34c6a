"""A session takes named steps under a deadline and a journal, and watches whether the machine stays what it was.

The sentinel is one fixed measurement, repeated between the groups of steps. Where it drifts, the group is taken again
once; where the machine is another one by the end, the run is rejected.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.contracts.errors import ResourceFailureError
from runtime.measure.journal import Findings, Journal

Group = Literal["links", "compute", "rounds", "memory", "acceptance"]

GROUPS: tuple[Group, ...] = ("links", "compute", "rounds", "memory", "acceptance")
MOST_DRIFT_FRAC = 0.03
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
    """What all steps found, in their order; what there is to say about it; and whether nothing is missing."""

    findings: tuple[Findings, ...]
    notes: tuple[str, ...]
    drift_frac: float
    is_complete: bool


_REPEATING_FRAC = 0.5  # of the time, after which no disturbed group is taken again


class Session:
    """Takes steps group by group. `sentinel` returns seconds of a few fixed pieces of work."""

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
        self._repeat_until_s = now_s() + _REPEATING_FRAC * (stop_at_s - now_s())
        self._notes: list[str] = []
        self._num_done = self._num_steps = 0

    def run(self, steps: Sequence[Step], *, is_forced: bool = False) -> Outcome:
        """Take the steps that the journal does not hold yet.

        Raises: ResourceFailureError, where the machine drifted beyond use, unless forced.
        """
        wanted = [step for step in steps if step.group in self._only]
        self._num_done, self._num_steps = 0, len(wanted)
        self._note_left_out(steps)
        if _SENTINEL not in self._journal.found:
            self._journal.add(_SENTINEL, Findings(sentinel_s=self._sentinel()))
        for group in GROUPS:
            self._run_group(group, [step for step in wanted if step.group == group])
        drift_frac = self._drift_frac()
        if drift_frac > REJECTED_DRIFT_FRAC and not is_forced:
            for name in (_SENTINEL, *(step.name for step in wanted if step.group in _TIMED)):
                self._journal.drop(name)
            raise ResourceFailureError(
                "the machine was too unsteady to be measured",
                why=f"the same work took {drift_frac:.0%} more or less at the end than at the start",
                remedy="try again when nothing else runs, or keep the result as it is with --force",
            )
        found = self._journal.found
        return Outcome(
            findings=tuple(found[step.name] for step in wanted if step.name in found),
            notes=tuple(self._notes),
            drift_frac=drift_frac,
            is_complete=all(step.name in found for step in wanted),
        )

    def _run_group(self, group: Group, steps: list[Step]) -> None:
        started_s, num_before = self._now_s(), self._num_done
        num_taken = self._take(steps)
        if num_taken and group in _TIMED:
            drift_frac = self._drift_frac()
            took_s = self._now_s() - started_s
            if drift_frac > MOST_DRIFT_FRAC and self._may_repeat(took_s):
                for step in steps:
                    self._journal.drop(step.name)
                self._num_done = num_before
                self._take(steps)
                drift_frac = self._drift_frac()
            if drift_frac > MOST_DRIFT_FRAC:
                self._notes.append(f"{group}: the machine drifted by {drift_frac:.1%} meanwhile")
        missing = [step for step in steps if step.name not in self._journal.found]
        if missing:
            self._notes.append(f"{group}: {len(missing)} of {len(steps)} steps not measured for lack of time")

    def _take(self, steps: list[Step]) -> int:
        """Take what the journal lacks, until the deadline; returns how many steps were taken."""
        num_taken = 0
        for step in steps:
            if step.name not in self._journal.found and self._now_s() < self._stop_at_s:
                self._on_progress(
                    Progress(group=step.group, step=step.name, num_done=self._num_done, num_steps=self._num_steps)
                )
                findings = step.run()
                num_taken += 1
                if findings != Findings() or self._now_s() < self._stop_at_s:  # not one that the deadline cut off
                    self._journal.add(step.name, findings)
            self._num_done += 1
        return num_taken

    def _may_repeat(self, took_s: float) -> bool:
        """Whether a group may be taken again: not where that would leave the others too little time."""
        return not self._is_quick and self._now_s() + took_s < self._repeat_until_s

    def _drift_frac(self) -> float:
        """By how much the sentinel differs from the first one, at the most over its parts."""
        first = self._journal.found[_SENTINEL].sentinel_s
        return max(abs(now / then - 1) for now, then in zip(self._sentinel(), first, strict=True))

    def _note_left_out(self, steps: Sequence[Step]) -> None:
        for group in GROUPS:
            if group not in self._only:
                self._notes.append(f"{group}: not measured, left out by --only")
            elif not any(step.group == group for step in steps):
                self._notes.append(f"{group}: not measured, {_WHY_NO_STEPS.get(group, 'there is nothing to take')}")
