"""How large a best-first tree must be to hold so much of the target's text: counted from recordings.

A tree's nodes are those with the largest products of probabilities along their paths. A product is kept as its cost,
-ln of it, so that the costs along a path add up. The draft's rows are recorded along the target's text only: of a
round's tree the children of every node on the target's path are known, and what hangs below the others is expected to
be the mean over recorded rows, each weighted by what the row before it left to other tokens than the target's: off its
path a draft is as unsure as where the path was left. How far that expectation is off was fitted once (SCATTER).

Shapes: T recorded positions of all texts one after the other, R ranks, H depths, G costs on a grid, Q questions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.calibration import calibrated
from planner.contracts.errors import BadInputError
from planner.contracts.plan import MAX_DRAFT_LEN, MAX_RANKS, MAX_TREE_NODES, ProbabilityCurve
from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from planner.copies import Copies
from planner.limits import Limits

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MOST_COST = 16.0  # a path taken once in nine million times is in no tree
NUM_RANKS = MAX_RANKS  # of a node's children; beyond the recorded ones probabilities follow a power of the rank

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
_FIFTHS = np.array([-1.2816, -0.5244, 0.0, 0.5244, 1.2816])  # of a normal variable: the middles of five equal parts


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
        return self._nodes_below(0.0, MAX_DRAFT_LEN)

    @cached_property
    def _nodes_below(self) -> Callable[[float, int], FloatArray]:
        return lru_cache(maxsize=None)(self._subtree_nodes)

    def _subtree_nodes(self, least_left: float, most_levels: int) -> FloatArray:
        """The same where the draft goes on only from nodes that cost by `least_left` less than may be spent."""
        weights_TR = np.broadcast_to(self._row_weights[:, None], self.costs_TR.shape)
        children_G = _on_grid(self.costs_TR, weights_TR)
        levels = [np.zeros(_GRID)]
        num_ended = min(math.ceil(least_left * _STEPS_PER_COST), _GRID)
        for _ in range(most_levels):
            levels.append(np.convolve(children_G, 1 + levels[-1])[:_GRID])
            levels[-1][:num_ended] = 0.0
        return np.stack(levels)

    @cached_property
    def _subtree_passes(self) -> FloatArray:
        """Mean passes (H, G) that go on along the draft's first choices from a node, by what its path may cost more.

        D_h(x) = 1 + mean over rows of [cost_0 <= x] D_(h-1)(x - cost_0).
        """
        first_G = _on_grid(self.costs_TR[:, 0], self._row_weights)
        levels = [np.zeros(_GRID)]
        for _ in range(MAX_DRAFT_LEN):
            levels.append(1 + np.convolve(first_G, levels[-1])[:_GRID])
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
        levels: list[Paths] = []
        starts_Q, spent_Q = np.arange(len(self.ranks_T)), np.zeros(len(self.ranks_T))
        expanded_Q = np.full(len(starts_Q), -np.inf)
        for depth in range(1, self.most_depth(max_depth) + 1):
            is_inside_Q = starts_Q + depth < self.ends_T[starts_Q]  # the round's last token is the target's
            starts_Q, spent_Q, expanded_Q = starts_Q[is_inside_Q], spent_Q[is_inside_Q], expanded_Q[is_inside_Q]
            drafted_Q = np.maximum(expanded_Q, self._expansion_costs(starts_Q, spent_Q, depth - 1))
            expanded_Q = np.where(self._is_copied(starts_Q, depth - 1), expanded_Q, drafted_Q)
            spent_Q = spent_Q + self._step_costs(starts_Q, depth - 1, np.full(len(starts_Q), depth <= max_depth))
            is_within_Q = spent_Q <= MOST_COST
            starts_Q, spent_Q, expanded_Q = starts_Q[is_within_Q], spent_Q[is_within_Q], expanded_Q[is_within_Q]
            if len(starts_Q) == 0:
                break
            if depth > max_depth + 1 and depth - 1 not in _COPY_DEPTHS:
                levels[-1] = levels[-1].kept(~np.isin(levels[-1].starts_Q, starts_Q, assume_unique=True))
            levels.append(Paths(starts_Q, np.full(len(starts_Q), depth), spent_Q, expanded_Q))
        return Paths.joined(levels)

    def count_within(self, limits: Limits, max_depth: int) -> "NodeCounts":
        """Nodes of the tree that a round draws up at each position (T) within limits."""
        most = min(limits.verified, MOST_COST)
        least_left = max(0.0, most - limits.expanded)
        starts_Q = np.arange(len(self.ranks_T))
        return self.count_nodes(starts_Q, np.full(len(starts_Q), most), max_depth, least_left)

    def count_nodes(
        self, starts_Q: IntArray, costs_Q: FloatArray, max_depth: int, least_left: float = 0.0
    ) -> "NodeCounts":
        """Nodes within each cost, none above MOST_COST, of the tree that a round draws up at each start.

        The draft goes on from nodes that cost less by `least_left`. Where there are more than any tree holds, the
        number that was found by then.
        """
        counts = NodeCounts(np.zeros(len(starts_Q)), np.zeros(len(starts_Q)))
        nodes_HG = self._nodes_below(least_left, max_depth)
        most_expanded_Q = costs_Q - least_left if least_left else np.full(len(costs_Q), np.inf)
        spent_Q = np.zeros(len(starts_Q))
        alive_Q = np.arange(len(starts_Q))
        for depth in range(self.most_depth(max_depth)):
            is_inside_Q = starts_Q[alive_Q] + depth < self.ends_T[starts_Q[alive_Q]]
            alive_Q = alive_Q[is_inside_Q]
            left_Q = costs_Q[alive_Q] - spent_Q[alive_Q] + _ROUNDING
            is_drafted_Q = self._expansion_costs(starts_Q[alive_Q], spent_Q[alive_Q], depth) <= most_expanded_Q[alive_Q]
            is_drafted_Q &= depth < max_depth
            if depth < max_depth:
                rows_Q, levels_HG = starts_Q[alive_Q] + depth, nodes_HG[: max_depth - depth]
                self._count_children(
                    counts, alive_Q[is_drafted_Q], rows_Q[is_drafted_Q], left_Q[is_drafted_Q], levels_HG[-1]
                )
            if self.copies is not None:
                self._count_wrong_copies(counts, alive_Q, starts_Q[alive_Q], depth, left_Q, max_depth, nodes_HG)
            steps_Q = self._step_costs(starts_Q[alive_Q], depth, is_drafted_Q)
            is_reached_Q = steps_Q <= left_Q
            alive_Q = alive_Q[is_reached_Q]
            spent_Q[alive_Q] += steps_Q[is_reached_Q]
            counts.known_Q[alive_Q] += 1
            alive_Q = alive_Q[counts.known_Q[alive_Q] + counts.below_Q[alive_Q] < _ENOUGH]
            if len(alive_Q) == 0:
                break
        return counts

    def count_passes(self, max_depth: int, most_expanded: float) -> FloatArray:
        """Passes of the draft (T) in a round that begins at each position.

        Each goes one level down: the longest path of them along the target's text or, where the draft's first choice
        leaves that, beside it. Copied tokens are all seen in one pass.
        """
        most_expanded = min(most_expanded, MOST_COST)
        most_T = np.zeros(len(self.ranks_T))
        starts_Q, spent_Q, passes_Q = np.arange(len(most_T)), np.zeros(len(most_T)), np.zeros(len(most_T))
        is_copied_Q = are_seen_Q = np.zeros(len(most_T), dtype=np.bool_)  # the node; copies before it
        for depth in range(max_depth):
            is_going_Q = (spent_Q <= most_expanded) & (starts_Q + depth < self.ends_T[starts_Q])
            starts_Q, spent_Q, passes_Q = starts_Q[is_going_Q], spent_Q[is_going_Q], passes_Q[is_going_Q]
            is_copied_Q, are_seen_Q = is_copied_Q[is_going_Q], are_seen_Q[is_going_Q]
            if len(starts_Q) == 0:
                break
            is_drafted_Q = self._expansion_costs(starts_Q, spent_Q, depth) <= most_expanded
            passes_Q = passes_Q + (is_drafted_Q & ~(is_copied_Q & are_seen_Q))
            are_seen_Q = are_seen_Q | (is_drafted_Q & is_copied_Q)
            left_Q = most_expanded - spent_Q - self.costs_TR[starts_Q + depth, 0]
            is_leaving_Q = is_drafted_Q & (left_Q >= 0) & (self.ranks_T[starts_Q + depth] != 0)
            beside_Q = _looked_up(self._subtree_passes[max_depth - depth - 1], np.maximum(left_Q, 0.0)) * is_leaving_Q
            most_T[starts_Q] = np.maximum(most_T[starts_Q], passes_Q + beside_Q)
            spent_Q = spent_Q + self._step_costs(starts_Q, depth, is_drafted_Q)
            is_copied_Q = self._is_copied(starts_Q, depth)
        return most_T

    def _expansion_costs(self, starts_Q: IntArray, spent_Q: FloatArray, depth: int) -> FloatArray:
        """Of going on with the draft from the target's token at a depth below each start.

        That of its path, and of what a copy after it leaves to others; no less than at the root, which is seen first.
        """
        if self.copies is None:
            return spent_Q
        runs_Q = self.copies.runs_T[starts_Q]
        own_Q = spent_Q + np.where(runs_Q >= depth, self._beside_copies[starts_Q + depth], 0.0)
        costs_Q: FloatArray = np.maximum(own_Q, np.where(runs_Q >= 0, self._beside_copies[starts_Q], 0.0))
        return costs_Q

    @cached_property
    def _beside_copies(self) -> FloatArray:
        """-ln of what the copied token at each position leaves to others; one more, for what follows the last."""
        assert self.copies is not None
        return np.append(-np.log(-np.expm1(-self.copies.costs_T)), 0.0)

    def _is_copied(self, starts_Q: IntArray, depth: int) -> BoolArray:
        """Whether the target's token at a depth below each start is a copy."""
        if self.copies is None:
            return np.zeros(len(starts_Q), dtype=np.bool_)
        is_copied_Q: BoolArray = self.copies.runs_T[starts_Q] > depth
        return is_copied_Q

    def _step_costs(self, starts_Q: IntArray, depth: int, is_drafted_Q: BoolArray) -> FloatArray:
        """Of the target's token at a depth below each start: the draft's, or that of a copy where it costs less."""
        own_Q = np.where(is_drafted_Q, self.own_costs_T[starts_Q + depth], np.inf)
        if self.copies is None:
            return own_Q
        of_copies_Q = np.minimum(own_Q, self.copies.costs_T[starts_Q + depth])
        return np.where(self._is_copied(starts_Q, depth), of_copies_Q, own_Q)

    def _count_children(
        self, counts: "NodeCounts", alive_Q: IntArray, rows_Q: IntArray, left_Q: FloatArray, below_G: FloatArray
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
            counts.below_Q[alive_Q] += is_other_Q * _looked_up(below_G, rest_Q[is_within_Q])

    def _count_wrong_copies(
        self,
        counts: "NodeCounts",
        alive_Q: IntArray,
        starts_Q: IntArray,
        depth: int,
        left_Q: FloatArray,
        max_depth: int,
        nodes_HG: FloatArray,
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
            counts.below_Q[alive_Q[chosen_Q]] += _looked_up(nodes_HG[max_depth - depth - 1], rest_Q)


@dataclass(frozen=True, slots=True)
class Paths:
    """Depths that the target's path reaches from starts, and the costs of the nodes there.

    `expanded_Q` is the largest cost at which the draft has to go on for that; -inf where copies alone lead there.
    """

    starts_Q: IntArray
    depths_Q: IntArray
    costs_Q: FloatArray
    expanded_Q: FloatArray

    @classmethod
    def joined(cls, parts: "Sequence[Paths]") -> Self:
        """All of them together."""
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *(part.starts_Q for part in parts)]),
            np.concatenate([none, *(part.depths_Q for part in parts)]),
            np.concatenate([np.zeros(0), *(part.costs_Q for part in parts)]),
            np.concatenate([np.zeros(0), *(part.expanded_Q for part in parts)]),
        )

    def kept(self, chosen_Q: BoolArray | IntArray) -> "Paths":
        """Some of them."""
        return Paths(
            self.starts_Q[chosen_Q], self.depths_Q[chosen_Q], self.costs_Q[chosen_Q], self.expanded_Q[chosen_Q]
        )

    def within(self, limits: Limits) -> BoolArray:
        """Which ones a round drafts that keeps to limits."""
        is_within_Q: BoolArray = (self.costs_Q <= limits.verified) & (self.expanded_Q <= limits.expanded)
        return is_within_Q


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

    def within(self, num_nodes: int) -> FloatArray:
        """Mean of the nodes, `num_nodes` at most: over five equally likely numbers of the unknown ones."""
        ninth_Q = (SCATTER[0] / np.maximum(self.below_Q, 1.0)[:, None] + SCATTER[1]) / 9
        shapes_QZ = np.maximum(1 - ninth_Q + _FIFTHS * np.sqrt(ninth_Q), 0.0) ** 3
        below_QZ = self.below_Q[:, None] * shapes_QZ / shapes_QZ.mean(axis=1, keepdims=True)
        within_Q: FloatArray = np.minimum(self.known_Q[:, None] + below_QZ, num_nodes).mean(axis=1)
        return within_Q


def _looked_up(values_G: FloatArray, costs_Q: FloatArray) -> FloatArray:
    """The values at these costs."""
    found_Q: FloatArray = values_G.take((costs_Q * _STEPS_PER_COST + 0.5).astype(np.int64))
    return found_Q


def _on_grid(costs: FloatArray, weights: FloatArray) -> FloatArray:
    """Weights (G) by cost, each shared by its two neighbours on the grid; those beyond MOST_COST are left out."""
    is_within = costs < MOST_COST
    steps_C, weights_C = costs[is_within] * _STEPS_PER_COST, weights[is_within]
    below_C = steps_C.astype(np.int64)
    lower_C, upper_C = weights_C * (1 - steps_C + below_C), weights_C * (steps_C - below_C)
    on_grid_G: FloatArray = np.add(np.bincount(below_C, lower_C, _GRID), np.bincount(below_C + 1, upper_C, _GRID))
    return on_grid_G


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
