"""A plan's predicted timeline and that of its run, cut to the same stretch of time from the start of a round on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.contracts.errors import BadInputError
from planner.contracts.plan import Plan
from planner.contracts.timeline import Span
from planner.schedule import Schedule, round_time_s, schedule_of, timeline

PASS = "pass"  # the runtime's span of a whole pass, around those of its streamed units

_SETTLING_ROUNDS = 16  # that are let pass, until rounds repeat
_MOST_ROUNDS = 256  # predicted ones that are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Spans from the start of a round on, which is at 0 s, and when its rounds start."""

    spans: tuple[Span, ...]
    starts_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timelines:
    """The same stretch of time, predicted and measured. The plan's draft lane holds the host's time between passes."""

    predicted: Stretch
    measured: Stretch
    length_s: float
    predicted_round_s: float
    measured_rounds_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRun:
    """A run's plan, and what its lanes did."""

    plan: Plan
    spans: tuple[Span, ...]

    @property
    def pairs(self) -> dict[str, int]:
        """Every two rounds in a row, in words that count from 1, and the place of the first of them."""
        return {f"{first + 1} and {first + 2}": first for first in range(len(round_starts_s(self.spans)) - 1)}

    def pair(self, first: int) -> Timelines:
        """The round of that place and the next, predicted and measured. Raises: BadInputError, as `timelines` does."""
        return timelines(self.plan, self.spans, first_round=first, num_rounds=2)


def timelines(plan: Plan, measured: Sequence[Span], *, first_round: int, num_rounds: int) -> Timelines:
    """So many measured rounds from the one given (0 is the first), and what the plan predicts of as long a time.

    Every predicted round is like the others. Raises: BadInputError, where the trace has no such rounds, or the plan
    does not say how long its units and rounds take.
    """
    starts_s = [*round_starts_s(measured), max((span.stop_s for span in measured), default=0.0)]
    if not 0 <= first_round < first_round + num_rounds < len(starts_s):
        raise BadInputError(
            f"the timeline has no rounds {first_round} to {first_round + num_rounds - 1}",
            why=f"it shows {len(starts_s) - 1} rounds, counted from 0",
            remedy="other rounds, or a longer run: runtime generate --trace with more --max-tokens",
        )
    shown_s = starts_s[first_round : first_round + num_rounds + 1]
    schedule = schedule_of(plan)
    round_s = round_time_s(schedule)
    length_s = max(shown_s[-1] - shown_s[0], num_rounds * round_s)
    if length_s <= 0:
        raise BadInputError("the timeline's rounds take no time", why="their spans are empty", remedy="another trace")
    num_predicted = min(_MOST_ROUNDS, 1 + math.ceil(length_s / max(round_s, length_s / _MOST_ROUNDS)))
    predicted, predicted_s = _predicted(schedule, num_predicted)
    return Timelines(
        predicted=_stretch(predicted, predicted_s, predicted_s[0], length_s),
        measured=_stretch(measured, starts_s[:-1], shown_s[0], length_s),
        length_s=length_s,
        predicted_round_s=round_s,
        measured_rounds_s=tuple(stop_s - start_s for start_s, stop_s in pairwise(shown_s)),
    )


def round_starts_s(measured: Sequence[Span]) -> list[float]:
    """When each round of a run's trace starts: with its draft, which takes no time where nothing is drafted."""
    return sorted(span.start_s for span in measured if span.lane == "draft")


def _predicted(schedule: Schedule, num_rounds: int) -> tuple[tuple[Span, ...], list[float]]:
    """Spans of so many settled rounds after others, and when each of them starts."""
    spans = timeline(schedule, _SETTLING_ROUNDS + num_rounds)
    last = schedule.steps[-1].label
    ends_s = [span.stop_s for span in spans if span.lane == "compute" and span.label == last]
    return spans, ends_s[_SETTLING_ROUNDS:-1]


def _stretch(spans: Sequence[Span], starts_s: Sequence[float], from_s: float, length_s: float) -> Stretch:
    to_s = from_s + length_s
    return Stretch(
        spans=tuple(
            Span(
                lane=span.lane,
                label=span.label,
                start_s=max(span.start_s, from_s) - from_s,
                stop_s=min(span.stop_s, to_s) - from_s,
            )
            for span in spans
            if span.stop_s > from_s and span.start_s < to_s
        ),
        starts_s=tuple(start_s - from_s for start_s in starts_s if from_s <= start_s < to_s),
    )
