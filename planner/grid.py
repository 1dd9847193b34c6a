"""Cases over a grid of memories, links and contexts, for sliders that move where this program is not.

What is now is always on the grid, and there nothing is changed: its numbers are those of `recommend`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.changes import Change, Situation, link_bytes_per_s
from planner.contracts.errors import BadInputError, DraftstreamError
from planner.contracts.quantities import format_bytes, format_bytes_per_s
from planner.what_if import Case, StrategyMap, WhatIf

Field = Literal["context_tokens", "link_bytes_per_s", "device_bytes"]

MEMORY_FACTORS = (1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4)
LINK_FACTORS = (1 / 4, 1 / 2, 1, 2, 4)
MAP_MEMORY_FACTORS = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2, 2, 3, 4)
MAP_LINK_FACTORS = (1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4)
_AS_IT_IS = Change()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Ascending values of what a slider moves; the one at `start_idx` is what is now."""

    field: Field
    label: str
    values: tuple[float, ...]
    texts: tuple[str, ...]  # the values for people
    start_idx: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What the planner says at one point of the grid, or why nothing runs there."""

    change: Change
    case: Case | None
    why_not: str | None = None


def axes_of(situation: Situation, contexts_tokens: Sequence[int] = ()) -> tuple[Axis, ...]:
    """The axes of a situation; a context besides its own adds one, and a link that nobody measured has none."""
    request = situation.request
    now_tokens = request.wishes.context_tokens
    axes = []
    if set(contexts_tokens) - {now_tokens}:
        values = sorted({now_tokens, *contexts_tokens})
        texts = tuple(f"{value} tokens" for value in values)
        axes.append(_axis("context_tokens", "context", values, texts, now_tokens))
    try:
        now_bytes_per_s = link_bytes_per_s(situation.profile, request.wishes.link)
    except BadInputError:
        pass
    else:
        rates = [now_bytes_per_s * factor for factor in LINK_FACTORS]
        texts = tuple(map(format_bytes_per_s, rates))
        axes.append(_axis("link_bytes_per_s", "link bandwidth", rates, texts, now_bytes_per_s))
    now_bytes = request.budget.device_bytes
    sizes = [int(now_bytes * factor) for factor in MEMORY_FACTORS]
    axes.append(_axis("device_bytes", "device memory", sizes, tuple(map(format_bytes, sizes)), now_bytes))
    return tuple(axes)


def num_points(axes: Sequence[Axis]) -> int:
    """How many points the grid has."""
    return math.prod(len(axis.values) for axis in axes)


def points(what_if: WhatIf, axes: Sequence[Axis]) -> Iterator[Point]:
    """Each point of the grid, the last axis running fastest."""
    for places in itertools.product(*(range(len(axis.values)) for axis in axes)):
        change = change_at(axes, places)
        try:
            yield Point(change=change, case=what_if.case(change))
        except DraftstreamError as error:
            yield Point(change=change, case=None, why_not=f"{error.what}: {error.why}")


def map_around(what_if: WhatIf, change: Change = _AS_IT_IS) -> StrategyMap:
    """The best around what is now, after all of a change but memory and link.

    Raises: BadInputError, where the link was not measured; else as `WhatIf.map` does.
    """
    request = what_if.situation.request
    rate = link_bytes_per_s(what_if.situation.profile, request.wishes.link)
    return what_if.map(
        [int(request.budget.device_bytes * factor) for factor in MAP_MEMORY_FACTORS],
        [rate * factor for factor in MAP_LINK_FACTORS],
        replace(change, device_bytes=None, link_bytes_per_s=None),
    )


def change_at(axes: Sequence[Axis], places: Sequence[int]) -> Change:
    """The change that leads to a point; None of what stays as it is, so that caps of the request hold there."""
    moved = {
        axis.field: axis.values[place] for axis, place in zip(axes, places, strict=True) if place != axis.start_idx
    }
    return Change(
        device_bytes=_whole(moved.get("device_bytes")),
        link_bytes_per_s=moved.get("link_bytes_per_s"),
        context_tokens=_whole(moved.get("context_tokens")),
    )


def _axis(field: Field, label: str, values: Sequence[float], texts: tuple[str, ...], now: float) -> Axis:
    return Axis(field=field, label=label, values=tuple(values), texts=texts, start_idx=list(values).index(now))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
