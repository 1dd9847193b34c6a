"""All that what-if shows of one situation: the same for a terminal, a page and a document."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.changes import Situation, link_bytes_per_s
from planner.contracts.errors import BadInputError
from planner.contracts.recommendation import Recommendation
from planner.grid import MAP_LINK_FACTORS, MAP_MEMORY_FACTORS
from planner.what_if import Advice, Case, LengthCurve, StrategyMap, WhatIf


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the planner says of a situation as it is, of those around it, and of other machines."""

    name: str  # of the machine
    what_if: WhatIf
    case: Case
    recommendation: Recommendation
    curve: LengthCurve | None
    strategies: StrategyMap | None  # None: the link was not measured
    advice: tuple[Advice, ...]  # of several machines; empty where one was asked about

    @property
    def situation(self) -> Situation:
        """As it is."""
        return self.what_if.situation

    @property
    def now_bytes_per_s(self) -> float:
        """Of the link. Raises: BadInputError, where it was not measured."""
        return link_bytes_per_s(self.situation.profile, self.situation.request.wishes.link)


def look(name: str, situation: Situation, advice: Sequence[Advice] = ()) -> View:
    """The view of a situation. Raises: as `recommend` does."""
    what_if = WhatIf(situation)
    case = what_if.case()
    return View(
        name=name,
        what_if=what_if,
        case=case,
        recommendation=case.recommendation,
        curve=case.lengths(),
        strategies=_map_around(what_if),
        advice=tuple(advice),
    )


def view_of(name: str, situation: Situation, recommendation: Recommendation) -> View:
    """The view of a situation for which the recommendation was made, and of nothing around it."""
    what_if = WhatIf(situation)
    case = what_if.case()
    return View(
        name=name,
        what_if=what_if,
        case=case,
        recommendation=recommendation,
        curve=case.lengths(),
        strategies=None,
        advice=(),
    )


def _map_around(what_if: WhatIf) -> StrategyMap | None:
    request = what_if.situation.request
    try:
        rate = link_bytes_per_s(what_if.situation.profile, request.wishes.link)
    except BadInputError:
        return None
    sizes = [int(request.budget.device_bytes * factor) for factor in MAP_MEMORY_FACTORS]
    return what_if.map(sizes, [rate * factor for factor in MAP_LINK_FACTORS])
