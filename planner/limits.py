"""How far rounds are drafted where more would not pay: limits on the cost of a path, -ln of its probability.

The runtime weighs every node, and every pass of its draft, against what the same seconds bring elsewhere (DESIGN.md,
section 3, "Stop drafting"). At the rate g a node pays whose path's probability is at least g times the seconds that it
adds; so do those nodes that a further pass expands. Which limits these are follows from the rate, which follows from
them: both are found together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from planner.acceptance import FloatArray, Yield

_STEPS_PER_COST = 4  # limits lie on a grid: rates are flat about their best, and replays are shared
_MOST_STEPS = 6  # towards the limits of a rate; three are common
_MOST_WIDER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Costs beyond which paths are left: of nodes to be verified, and of nodes for the draft to go on from."""

    verified: float = math.inf
    expanded: float = math.inf

    @classmethod
    def of(cls, node_tokens: float, pass_tokens: float, wave: FloatArray) -> Self:
        """The limits, on the grid, where a node costs as much time as so many tokens take, and a pass of the draft.

        A pass brings children of p wave_m, p being the probability of the likeliest node that it expands. It pays where
        the sum of those of them that pay, less node_tokens for each, reaches pass_tokens: from the least
        p = (pass_tokens + m node_tokens) / (sum of the first m of the wave) on.
        """
        if len(wave) == 0:
            return cls(verified=_on_grid(node_tokens))
        least_probs = (pass_tokens + node_tokens * np.arange(1, len(wave) + 1)) / wave.cumsum()
        return cls(verified=_on_grid(node_tokens), expanded=_on_grid(float(least_probs.min())))


def wave_of(mean_row: Sequence[float]) -> FloatArray:
    """Chances of what one pass brings, falling, over that of the likeliest node that it expands; none without a row.

    With that node go its siblings and cousins, of r_i r_j / r_0^2, and each has children of r_k.
    """
    row = np.array([share for share in mean_row if share > 0])
    if len(row) == 0:
        return row
    shares = np.multiply.outer(np.outer(row, row), row).ravel() / row.max() ** 2
    wave: FloatArray = -np.sort(-shares)
    return wave


NO_LIMITS = Limits()


def best_yield(
    yield_at: Callable[[Limits], Yield], round_s: Callable[[float, float], float], wave: FloatArray
) -> Yield:
    """The yield at the limits that the rate it brings sets, of rounds that take `round_s(nodes, passes)`.

    `wave` is what a pass of the draft brings. Newton's steps from no limits at all (Dinkelbach 1967), then wider ones
    for the draft, whose passes expand more than a wave tells; of all these the fastest, as rounds may cost in steps.
    """
    found: dict[Limits, Yield] = {}
    rates: dict[Limits, float] = {}
    limits = NO_LIMITS
    while limits not in found and len(found) < _MOST_STEPS:
        tried, found[limits] = limits, yield_at(limits)
        rates[limits] = found[limits].mean / round_s(found[limits].mean_nodes, found[limits].mean_passes)
        limits = _limits_at(rates[limits], found[limits], round_s, wave)
    for _ in range(_MOST_WIDER if tried.expanded < math.inf else 0):
        wider = replace(tried, expanded=tried.expanded + 1)
        found[wider] = yield_at(wider)
        rates[wider] = found[wider].mean / round_s(found[wider].mean_nodes, found[wider].mean_passes)
        if rates[wider] <= rates[tried]:
            break
        tried = wider
    return found[max(rates, key=rates.__getitem__)]


def _limits_at(rate: float, found: Yield, round_s: Callable[[float, float], float], wave: FloatArray) -> Limits:
    """The limits at a rate, by what the last node of a mean round costs, and the last pass."""
    nodes, passes = max(found.mean_nodes, 1.0), max(found.mean_passes, 1.0)
    seconds = round_s(nodes, passes)
    return Limits.of(rate * (seconds - round_s(nodes - 1, passes)), rate * (seconds - round_s(nodes, passes - 1)), wave)


def _on_grid(least_prob: float) -> float:
    if least_prob <= 0:
        return math.inf
    if least_prob > 1:
        return -1 / _STEPS_PER_COST
    return round(-math.log(least_prob) * _STEPS_PER_COST) / _STEPS_PER_COST
