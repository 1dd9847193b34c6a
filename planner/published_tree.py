"""Tokens per round of trees where only a chain's acceptance was published: an estimate.

At each depth the first choice is taken with the curve's hazard. Where it is not, the target's token is the second,
third ... choice with the shares that the demo pair showed (1,632 positions of greedy text, docs/LOG.md). All nodes of a
depth are alike, so that the tree is as it would be without looking at the draft's probabilities: less than the runtime
gets from them.
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from planner.acceptance import Yield, curve_yield
from planner.contracts.profile import AcceptanceCurve

# Of the second to ninth choice, where the first is wrong.
RANK_SHARES = (0.30, 0.14, 0.08, 0.05, 0.05, 0.03, 0.03, 0.02)
ASSUMED_RANKS_FRAC = 0.10  # by which another pair's shares may move the tokens per round


def published_tree_yield(curve: AcceptanceCurve, num_nodes: int, max_depth: int) -> Yield:
    """Tokens per round of the best tree of so many nodes; its interval is wider than that of the curve's chain."""
    of_chain = curve_yield(curve, max_depth)
    taken = _taken_by_depth(of_chain.survival, num_nodes)
    mean = 1 + sum(taken)
    square = 1 + sum((2 * depth + 1) * share for depth, share in enumerate(taken, 1))
    return replace(
        of_chain,
        mean=mean,
        between_frac=math.hypot(of_chain.between_frac, ASSUMED_RANKS_FRAC),
        round_frac=math.sqrt(max(0.0, square - mean**2)) / mean,
        survival=taken,
        mean_nodes=num_nodes,
        mean_passes=max_depth,
    )


@lru_cache(maxsize=256)
def _taken_by_depth(survival: tuple[float, ...], num_nodes: int) -> tuple[float, ...]:
    """The chance that a round accepts a node of each depth: products of the best nodes' shares, summed."""
    rows = [_row(hazard) for hazard in _hazards(survival)]
    taken = [0.0] * len(rows)
    order = itertools.count()
    frontier = [(-rows[0][0], next(order), 0, 0, 1.0)]  # minus the chance, age, depth, choice, the parent's chance
    for _ in range(num_nodes):
        if not frontier:
            break
        minus_chance, _, depth, choice, parent_chance = heapq.heappop(frontier)
        taken[depth] -= minus_chance
        if choice + 1 < len(rows[depth]):
            sibling = -parent_chance * rows[depth][choice + 1]
            heapq.heappush(frontier, (sibling, next(order), depth, choice + 1, parent_chance))
        if depth + 1 < len(rows):
            child = minus_chance * rows[depth + 1][0]
            heapq.heappush(frontier, (child, next(order), depth + 1, 0, -minus_chance))
    return tuple(taken)


def _hazards(survival: Sequence[float]) -> list[float]:
    return [now / before if before > 0 else 0.0 for before, now in itertools.pairwise((1.0, *survival))]


def _row(hazard: float) -> tuple[float, ...]:
    """Chances of the first choices, falling."""
    return tuple(sorted((hazard, *((1 - hazard) * share for share in RANK_SHARES)), reverse=True))
