"""How large a best-first tree must be to hold so much of the target's text: counted from recordings.

A tree's nodes are those with the largest products of probabilities along their paths. A product is kept as its cost,
-ln of it, so that the costs along a path add up. The draft's rows are recorded along the target's text only: of a
round's tree the children of every node on the target's path are known, and what hangs below the others is expected to
be the mean over recorded rows, each weighted by what the row before it left to other tokens than the target's: off its
path a draft is as unsure as where the path was left. How far that expectation is off was fitted once (SCATTER).

Shapes: T recorded positions of all texts one after the other, R ranks, H depths, G costs on a grid, Q questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.calibration import calibrated
from planner.contracts.errors import BadInputError
from planner.contracts.plan import MAX_DRAFT_LEN, MAX_TREE_NODES, ProbabilityCurve
from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from planner.copies import Copies

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_COST = 16.0  # a path taken once in nine million times is in no tree
NUM_RANKS = 32  # of a node's children; beyond the recorded ones probabilities follow a power of the rank

# Variance of the nodes off the path, of mean m: SCATTER[0] m + SCATTER[1] m^2. Fitted to trees that the demo pair's
# draft grew after 1016 positions of 8 texts, 2026-11-20.
SCATTER = (2.0, 0.25)

_STEPS_PER_COST = 32
_GRID = int(MOST_COST * _STEPS_PER_COST) + 2
_LEAST_PROB = 1e-9
_COPY_DEPTHS = (6, 8, 12, 16, 24, 32, 48, MAX_DRAFT_LEN)
_ENOUGH = 4.0 * MAX_TREE_NODES
_LEAST_BELOW = 1e-3  # fewer expected nodes than these are none
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False, kw_only=True)
class DraftRows:
    """What a draft says along texts. `ends_T` is the position after the last one of the same text.

    The first token of a text comes out of its prefill, so that rounds start at the second: it is left out.
    """

    costs_TR: FloatArray
    ranks_T: IntArray
    own_costs_T: FloatArray  # of the target's token; infinite where it is in no tree
    overlaps_T: FloatArray
    ends_T: IntArray
    copies: Copies | None = None

    @classmethod
    def of(cls, recordings: Sequence[AcceptanceRecording], curve: ProbabilityCurve | None) -> Self:
        """The rows of the recordings that hold the first choices' probabilities, products taken of the curve's shares.

        Raises: BadInputError, where there are none.
        """
        used = with_top_probs(recordings)
        top_TJ = np.concatenate([np.array(entry.top_probs).reshape(-1, NUM_TOP_PROBS)[1:] for entry in used])
        ranks_T = np.concatenate([np.array(entry.ranks[1:], dtype=np.int64) for entry in used])
        own_probs_T = np.concatenate([_along(entry, entry.draft_probs) for entry in used])
        costs_TR = _costs(_with_tails(top_TJ, ranks_T, own_probs_T), curve)
        own_costs_T = np.take_along_axis(costs_TR, np.minimum(ranks_T, NUM_RANKS - 1)[:, None], axis=1)[:, 0]
        lengths = np.array([len(entry.ranks) - 1 for entry in used])
        return cls(
            costs_TR=costs_TR,
            ranks_T=ranks_T,
            own_costs_T=np.where(ranks_T < NUM_RANKS, own_costs_T, np.inf),
            overlaps_T=np.concatenate([_along(entry, entry.overlaps) for entry in used]),
            ends_T=np.repeat(lengths.cumsum(), lengths),
        )

    def with_copies(self, copies: Copies) -> Self:
        """The rows with chains of copied tokens in every tree."""
        return replace(self, copies=copies)

    @cached_property
    def subtree_nodes(self) -> FloatArray:
        """Mean nodes (H, G) within each cost of a subtree of at most h levels, h = 0 to MAX_DRAFT_LEN.

        M_h(x) = mean over rows of sum_r [cost_r <= x] (1 + M_(h-1)(x - cost_r)).
        """
        weights_TR = np.broadcast_to(self._row_weights[:, None], self.costs_TR.shape)
        is_within_TR = self.costs_TR < MOST_COST
        steps_C, weights_C = self.costs_TR[is_within_TR] * _STEPS_PER_COST, weights_TR[is_within_TR]
        below_C = steps_C.astype(np.int64)
        children_G = np.bincount(below_C, weights_C * (1 - steps_C + below_C), _GRID)
        children_G += np.bincount(below_C + 1, weights_C * (steps_C - below_C), _GRID)
        levels = [np.zeros(_GRID)]
        for _ in range(MAX_DRAFT_LEN):
            levels.append(np.convolve(children_G, 1 + levels[-1])[:_GRID])
        return np.stack(levels)

    @cached_property
    def _row_weights(self) -> FloatArray:
        """How much each row (T) counts for what is off the path; sums to one."""
        others_T = np.exp(-self.costs_TR).sum(axis=1) - np.exp(-self.own_costs_T)
        weights_T = np.roll(np.maximum(others_T, _LEAST_PROB), 1)
        weights_T[0] = weights_T.mean()
        row_weights: FloatArray = weights_T / weights_T.sum()
        return row_weights

    def most_depth(self, max_depth: int) -> int:
        """Levels of a tree whose draft has so many: copies need no pass for each, and go on below."""
        return max_depth if self.copies is None else max(max_depth, MAX_DRAFT_LEN)

    def path_costs(self, max_depth: int) -> "Paths":
        """Every start with the depths that the target's path reaches within MOST_COST; the draft to `max_depth`.

        Below that, where copies alone go on, with some of them: those of _COPY_DEPTHS, and the path's last.
        """
        starts: list[IntArray] = []
        depths: list[IntArray] = []
        costs: list[FloatArray] = []
        starts_Q, spent_Q = np.arange(len(self.ranks_T)), np.zeros(len(self.ranks_T))
        for depth in range(1, self.most_depth(max_depth) + 1):
            is_inside_Q = starts_Q + depth < self.ends_T[starts_Q]  # the round's last token is the target's
            starts_Q, spent_Q = starts_Q[is_inside_Q], spent_Q[is_inside_Q]
            spent_Q = spent_Q + self._step_costs(starts_Q, depth - 1, is_drafted=depth <= max_depth)
            starts_Q, spent_Q = starts_Q[spent_Q <= MOST_COST], spent_Q[spent_Q <= MOST_COST]
            if len(starts_Q) == 0:
                break
            if depth > max_depth + 1 and depth - 1 not in _COPY_DEPTHS:
                is_last_Q = ~np.isin(starts[-1], starts_Q, assume_unique=True)
                starts[-1], depths[-1], costs[-1] = starts[-1][is_last_Q], depths[-1][is_last_Q], costs[-1][is_last_Q]
            starts.append(starts_Q)
            depths.append(np.full(len(starts_Q), depth))
            costs.append(spent_Q)
        if not starts:
            return Paths(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        return Paths(np.concatenate(starts), np.concatenate(depths), np.concatenate(costs))

    def count_nodes(self, starts_Q: IntArray, costs_Q: FloatArray, max_depth: int) -> "NodeCounts":
        """Nodes within each cost, none above MOST_COST, of the tree that a round draws up at each start.

        Where there are more than any tree holds, the number that was found by then.
        """
        counts = NodeCounts(np.zeros(len(starts_Q)), np.zeros(len(starts_Q)))
        spent_Q = np.zeros(len(starts_Q))
        alive_Q = np.arange(len(starts_Q))
        for depth in range(self.most_depth(max_depth)):
            is_inside_Q = starts_Q[alive_Q] + depth < self.ends_T[starts_Q[alive_Q]]
            alive_Q = alive_Q[is_inside_Q]
            left_Q = costs_Q[alive_Q] - spent_Q[alive_Q] + _ROUNDING
            if depth < max_depth:
                self._count_children(counts, alive_Q, starts_Q[alive_Q] + depth, left_Q, max_depth - depth - 1)
            if self.copies is not None:
                self._count_wrong_copies(counts, alive_Q, starts_Q[alive_Q], depth, left_Q, max_depth)
            steps_Q = self._step_costs(starts_Q[alive_Q], depth, is_drafted=depth < max_depth)
            is_reached_Q = steps_Q <= left_Q
            alive_Q = alive_Q[is_reached_Q]
            spent_Q[alive_Q] += steps_Q[is_reached_Q]
            counts.known_Q[alive_Q] += 1
            alive_Q = alive_Q[counts.known_Q[alive_Q] + counts.below_Q[alive_Q] < _ENOUGH]
            if len(alive_Q) == 0:
                break
        return counts

    def _step_costs(self, starts_Q: IntArray, depth: int, *, is_drafted: bool) -> FloatArray:
        """Of the target's token at a depth below each start: the draft's, or that of a copy where it costs less."""
        own_Q: FloatArray = self.own_costs_T[starts_Q + depth] if is_drafted else np.full(len(starts_Q), np.inf)
        if self.copies is None:
            return own_Q
        is_copied_Q = self.copies.runs_T[starts_Q] > depth
        return np.where(is_copied_Q, np.minimum(own_Q, self.copies.costs_T[starts_Q + depth]), own_Q)

    def _count_children(
        self, counts: "NodeCounts", alive_Q: IntArray, rows_Q: IntArray, left_Q: FloatArray, num_levels: int
    ) -> None:
        """Add the children that are not the target's, and what hangs below them."""
        for rank in range(NUM_RANKS):
            rest_Q = left_Q - self.costs_TR[rows_Q, rank]
            is_within_Q = rest_Q >= 0  # and so for every lower rank
            alive_Q, rows_Q, left_Q = alive_Q[is_within_Q], rows_Q[is_within_Q], left_Q[is_within_Q]
            if len(alive_Q) == 0:
                break
            is_other_Q = self.ranks_T[rows_Q] != rank
            counts.known_Q[alive_Q] += is_other_Q
            counts.below_Q[alive_Q] += is_other_Q * self._below(rest_Q[is_within_Q], num_levels)

    def _count_wrong_copies(
        self,
        counts: "NodeCounts",
        alive_Q: IntArray,
        starts_Q: IntArray,
        depth: int,
        left_Q: FloatArray,
        max_depth: int,
    ) -> None:
        """Add the copied tokens from the first one on that the target does not write, and what the draft adds there.

        Each further copy is taken to cost as much as that one.
        """
        assert self.copies is not None
        copy_costs_Q = self.copies.costs_T[starts_Q + depth]
        rest_Q = left_Q - copy_costs_Q
        chosen_Q = np.flatnonzero((self.copies.runs_T[starts_Q] == depth) & (rest_Q >= 0))
        rest_Q, copy_costs_Q = rest_Q[chosen_Q], copy_costs_Q[chosen_Q]
        num_levels = self.most_depth(max_depth) - depth - 1
        counts.known_Q[alive_Q[chosen_Q]] += 1 + np.minimum(num_levels, rest_Q // copy_costs_Q)
        if depth + 1 < max_depth:
            counts.below_Q[alive_Q[chosen_Q]] += self._below(rest_Q, max_depth - depth - 1)

    def _below(self, left_Q: FloatArray, num_levels: int) -> FloatArray:
        below_Q: FloatArray = self.subtree_nodes[num_levels].take((left_Q * _STEPS_PER_COST + 0.5).astype(np.int64))
        return below_Q


@dataclass(frozen=True, slots=True)
class Paths:
    """Depths that the target's path reaches from starts, and the costs of the nodes there."""

    starts_Q: IntArray
    depths_Q: IntArray
    costs_Q: FloatArray


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """Nodes that are known, and the mean of those that are not."""

    known_Q: FloatArray
    below_Q: FloatArray

    def fits(self, num_nodes: int) -> FloatArray:
        """P(no more than `num_nodes`): unknown ones as a gamma variable with the fitted variance.

        By the cube root's normal distribution (Wilson and Hilferty 1931), whose integral the logistic function is close
        to (Bowling et al. 2009: 1.702, to within 0.0095).
        """
        room_Q = num_nodes + 0.5 - self.known_Q
        mean_Q = np.maximum(self.below_Q, _LEAST_BELOW)
        ninth_Q = (SCATTER[0] / mean_Q + SCATTER[1]) / 9
        z_Q = (np.cbrt(np.maximum(room_Q, 0.0) / mean_Q) - 1 + ninth_Q) / np.sqrt(ninth_Q)
        fits_Q = 1 / (1 + np.exp(-1.702 * z_Q))
        fits_Q = np.where(self.below_Q < _LEAST_BELOW, 1.0, fits_Q)
        return np.where(room_Q > 0, fits_Q, 0.0)


def with_top_probs(recordings: Sequence[AcceptanceRecording]) -> list[AcceptanceRecording]:
    """Those recordings that trees can be replayed from. Raises: BadInputError, where there are none."""
    used = [entry for entry in recordings if entry.top_probs and len(entry.ranks) > 1]
    if not used:
        raise BadInputError(
            "there is no acceptance to replay trees from",
            why="no recording of the profile holds the probabilities of a draft's first choices",
            remedy="profile again with that draft, or plan with a chain",
        )
    return used


def _along(recording: AcceptanceRecording, shares: Sequence[float]) -> FloatArray:
    """Shares from the second position on; 0 where they were not recorded."""
    return np.array(shares[1:]) if shares else np.zeros(len(recording.ranks) - 1)


def _costs(probs_TR: FloatArray, curve: ProbabilityCurve | None) -> FloatArray:
    shares_TR = np.where(probs_TR > 0, calibrated(probs_TR, curve), 0.0)
    costs_TR: FloatArray = -np.log(np.clip(shares_TR, _LEAST_PROB, 1.0))
    return costs_TR


def _with_tails(top_TJ: FloatArray, ranks_T: IntArray, own_probs_T: FloatArray) -> FloatArray:
    """The first NUM_RANKS probabilities of each row: beyond the recorded ones they fall as a power of the rank.

    Where the target's token lies beyond them, its probability gives the row's exponent; elsewhere the median of those
    holds, and 1 where there is none.
    """
    last_T = top_TJ[:, -1]
    is_beyond_T = (ranks_T >= NUM_TOP_PROBS) & (own_probs_T > 0) & (last_T > 0)
    falls = np.log(np.maximum(last_T, own_probs_T)[is_beyond_T] / own_probs_T[is_beyond_T])
    exponents = falls / np.log((ranks_T[is_beyond_T] + 1) / NUM_TOP_PROBS)
    exponents_T = np.full(len(top_TJ), np.median(exponents) if len(exponents) else 1.0)
    exponents_T[is_beyond_T] = exponents
    log_ranks = np.log(np.arange(NUM_TOP_PROBS + 1, NUM_RANKS + 1) / NUM_TOP_PROBS)
    return np.concatenate([top_TJ, last_T[:, None] * np.exp(-exponents_T[:, None] * log_ranks)], axis=1)
