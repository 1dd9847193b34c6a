"""All that what-if shows of one situation: the same for a terminal, a page and a document."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.changes import Situation, link_bytes_per_s
from planner.contracts.errors import BadInputError
from planner.contracts.recommendation import Recommendation
from planner.grid import map_around
from planner.what_if import Advice, Case, LengthCurve, StrategyMap, WhatIf


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the planner says of a situation as it is, of those around it, and of other machines."""

    name: str  # of the machine
    what_if: WhatIf
    case: Case
    strategies: StrategyMap | None  # None: nothing around was looked at, or the link was not measured
    advice: tuple[Advice, ...]  # of several machines; empty where one was asked about

    @property
    def situation(self) -> Situation:
        """As it is."""
        return self.what_if.situation

    @property
    def recommendation(self) -> Recommendation:
        """What `recommend` says of it."""
        return self.case.recommendation

    @property
    def curve(self) -> LengthCurve | None:
        """tok/s against draft length; None where no draft has chains."""
        return self.case.curve

    @property
    def now_bytes_per_s(self) -> float:
        """Of the link. Raises: BadInputError, where it was not measured."""
        return link_bytes_per_s(self.situation.profile, self.situation.request.wishes.link)


def look(name: str, what_if: WhatIf, advice: Sequence[Advice] = ()) -> View:
    """The view of a situation, of those around it and of other machines. Raises: as `recommend` does."""
    case = what_if.case()
    try:
        strategies = map_around(what_if)
    except BadInputError:
        strategies = None
    return View(name=name, what_if=what_if, case=case, strategies=strategies, advice=tuple(advice))


def look_at_it_alone(name: str, situation: Situation) -> View:
    """The view of a situation, and of nothing around it. Raises: as `recommend` does."""
    what_if = WhatIf(situation)
    return View(name=name, what_if=what_if, case=what_if.case(), strategies=None, advice=())
