"""Tokens per round of best-first trees, alone and with n-grams in the same tree, greedy and sampled.

A round accepts the target's text as far as it is in the round's tree: where the nodes that cost no more than the
target's path fit the planned number (planner.replay_trees) and are within the limits that the rate sets
(planner.limits). Mean sizes of rounds are those at the positions where rounds begin.

Shapes: T recorded positions of all texts one after the other, K depths from 0 on, Q paths, J children tried.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from planner.acceptance import Rounds, Yield, rounds_by_text, yield_of
from planner.contracts.errors import BadInputError
from planner.contracts.plan import ProbabilityCurve
from planner.contracts.profile import AcceptanceRecording
from planner.copies import Copies
from planner.limits import NO_LIMITS, Limits
from planner.replay_trees import MOST_COST, DraftRows, FloatArray, IntArray, NodeCounts, Paths, with_top_probs

_NUM_TRIED = 4  # children of a node that a sampled round may try; the fifth is accepted once in a hundred times


def tree_yield(
    recordings: Sequence[AcceptanceRecording],
    num_nodes: int,
    max_depth: int,
    curve: ProbabilityCurve | None,
    limits: Limits = NO_LIMITS,
) -> Yield:
    """Tokens per round of a draft's trees under greedy verification.

    Raises: BadInputError, where none can be replayed.
    """
    return _greedy(tuple(recordings), curve).tokens(num_nodes, max_depth, limits)


def hybrid_yield(
    recordings: Sequence[AcceptanceRecording],
    of_texts: Sequence[AcceptanceRecording],
    num_nodes: int,
    max_depth: int,
    min_match_tokens: int,
    curve: ProbabilityCurve | None,
    limits: Limits = NO_LIMITS,
) -> Yield:
    """Tokens per round where copies of earlier text share the draft's trees, under greedy verification.

    `of_texts` are the recordings of the same texts alone, in the same order. A copied token costs what matches like its
    own are worth, and the draft goes on below it; it is a node of its own unless the target writes it.

    Raises: BadInputError, where none can be replayed, or the recordings do not belong together.
    """
    return _hybrid(tuple(recordings), tuple(of_texts), min_match_tokens, curve).tokens(num_nodes, max_depth, limits)


def sampled_tree_yield(
    recordings: Sequence[AcceptanceRecording],
    num_nodes: int,
    max_depth: int,
    curve: ProbabilityCurve | None,
    limits: Limits = NO_LIMITS,
) -> Yield:
    """Tokens per round of a draft's trees under rejection sampling: an approximation, at the overlaps' temperature.

    The first child of a node is accepted with the overlap o of its row. After j rejections the next one is with
    o / (j + 1): what is left of the target's row is where the draft gave too little. On the demo pair at temperature 1
    that is .222, .148, .111 for the second to fourth child, where .207, .139, .103 hold (1024 rows, 2026-11-20). The
    path goes on with the mean probability of the accepted child, along a text that was written greedily.

    Raises: BadInputError, where none can be replayed.
    """
    return _sampled(tuple(recordings), curve).tokens(num_nodes, max_depth, limits)


class _Sizes:
    """Mean nodes and passes of rounds within limits, counted once for each depth."""

    def __init__(self, rows: DraftRows) -> None:
        self._counts = lru_cache(maxsize=None)(rows.count_within)
        self._passes = lru_cache(maxsize=None)(rows.count_passes)

    def of(self, rounds: Rounds, num_nodes: int, max_depth: int, limits: Limits) -> tuple[float, float]:
        """Nodes and passes of a mean round; its full size where nothing limits it."""
        if limits == NO_LIMITS:
            return num_nodes, max_depth
        mean_nodes = rounds.mean(self._counts(limits, max_depth).within(num_nodes))
        return mean_nodes, rounds.mean(self._passes(max_depth, limits.expanded))


class _GreedyReplay:
    """The rounds of a set of texts, for every size of tree; nodes are counted once for each depth."""

    def __init__(self, rows: DraftRows) -> None:
        self._rows = rows
        self._sizes = _Sizes(rows)
        self._counted = lru_cache(maxsize=None)(self._count)
        self.tokens = lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, num_nodes: int, max_depth: int, limits: Limits) -> Yield:
        paths, counts = self._counted(max_depth)
        deepest = max(max_depth, min(num_nodes, int(paths.depths_Q.max(initial=0))))
        inside = np.flatnonzero((paths.depths_Q <= deepest) & paths.within(limits))
        starts_Q, depths_Q = paths.starts_Q[inside], paths.depths_Q[inside]
        reach_TK = np.zeros((len(self._rows.ranks_T), deepest + 1))
        reach_TK[:, 0] = 1.0
        reach_TK[starts_Q, depths_Q] = counts.fits(num_nodes)[inside]
        if deepest > max_depth:  # where not all depths were counted it is as at the next one that was
            below_TK = reach_TK[:, max_depth:]
            below_TK[:] = np.maximum.accumulate(below_TK[:, ::-1], axis=1)[:, ::-1]
        rounds = _rounds(self._rows, np.minimum.accumulate(reach_TK, axis=1))
        return yield_of(rounds.counts_PK, sizes=self._sizes.of(rounds, num_nodes, max_depth, limits))

    def _count(self, max_depth: int) -> tuple[Paths, NodeCounts]:
        paths = self._rows.path_costs(max_depth)
        return paths, self._rows.count_nodes(paths.starts_Q, paths.costs_Q, max_depth)


class _SampledReplay:
    """The rounds of a set of texts in expectation, for every size of tree."""

    def __init__(self, rows: DraftRows) -> None:
        overlaps_TJ = rows.overlaps_T[:, None] / np.arange(1, _NUM_TRIED + 1)
        rejected_TJ = np.cumprod(1 - overlaps_TJ, axis=1)
        self._taken_TJ = overlaps_TJ * np.concatenate([np.ones((len(overlaps_TJ), 1)), rejected_TJ[:, :-1]], axis=1)
        taken_T = self._taken_TJ.sum(axis=1)
        kept_T = (self._taken_TJ * np.exp(-rows.costs_TR[:, :_NUM_TRIED])).sum(axis=1)  # of the path's product
        own_costs_T = -np.log(np.maximum(kept_T, 1e-9) / np.maximum(taken_T, 1e-9))
        self._rows = replace(rows, ranks_T=np.zeros_like(rows.ranks_T), own_costs_T=own_costs_T)
        self._sizes = _Sizes(self._rows)
        self._counted = lru_cache(maxsize=None)(self._count)
        self.tokens = lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, num_nodes: int, max_depth: int, limits: Limits) -> Yield:
        paths, slots_Q, counts = self._counted(max_depth)
        rows_Q = paths.starts_Q + paths.depths_Q - 1
        accepted_TK = np.zeros((len(self._rows.ranks_T), max_depth + 1))
        accepted_TK[:, 0] = 1.0
        passed_Q = self._taken_TJ[rows_Q, slots_Q] * counts.fits(num_nodes) * paths.within(limits)
        np.add.at(accepted_TK, (paths.starts_Q, paths.depths_Q), passed_Q)
        rounds = _rounds(self._rows, np.multiply.accumulate(accepted_TK, axis=1))
        return yield_of(rounds.counts_PK, sizes=self._sizes.of(rounds, num_nodes, max_depth, limits))

    def _count(self, max_depth: int) -> tuple[Paths, IntArray, NodeCounts]:
        """Every child that may be tried along the path of the mean child: its path, which one it is, and the nodes."""
        found = self._rows.path_costs(max_depth)
        rows_Q = found.starts_Q + found.depths_Q - 1
        before_Q = found.costs_Q - self._rows.own_costs_T[rows_Q]
        costs_QJ = before_Q[:, None] + self._rows.costs_TR[rows_Q, :_NUM_TRIED]
        chosen_Q, slots_Q = np.nonzero(costs_QJ <= MOST_COST)
        paths = replace(found.kept(chosen_Q), costs_Q=costs_QJ[chosen_Q, slots_Q])
        return paths, slots_Q, self._rows.count_nodes(paths.starts_Q, paths.costs_Q, max_depth)


@lru_cache(maxsize=16)
def _greedy(recordings: tuple[AcceptanceRecording, ...], curve: ProbabilityCurve | None) -> _GreedyReplay:
    return _GreedyReplay(DraftRows.of(recordings, curve))


@lru_cache(maxsize=16)
def _hybrid(
    recordings: tuple[AcceptanceRecording, ...],
    of_texts: tuple[AcceptanceRecording, ...],
    min_match_tokens: int,
    curve: ProbabilityCurve | None,
) -> _GreedyReplay:
    if not _belong_together(recordings, of_texts):
        raise BadInputError(
            "the recordings of the draft and of the texts do not belong together",
            why="they differ in number, domains or lengths",
            remedy="profile again with that draft and a prompt file",
        )
    used = {id(entry) for entry in with_top_probs(recordings)}
    texts = [text for entry, text in zip(recordings, of_texts, strict=True) if id(entry) in used]
    return _GreedyReplay(DraftRows.of(recordings, curve).with_copies(Copies.of(texts, min_match_tokens)))


@lru_cache(maxsize=16)
def _sampled(recordings: tuple[AcceptanceRecording, ...], curve: ProbabilityCurve | None) -> _SampledReplay:
    return _SampledReplay(DraftRows.of([entry for entry in recordings if entry.overlaps], curve))


def _belong_together(recordings: Sequence[AcceptanceRecording], of_texts: Sequence[AcceptanceRecording]) -> bool:
    return len(recordings) == len(of_texts) and all(
        entry.domain == text.domain and len(entry.ranks) == len(text.match_hits) == len(text.match_lengths)
        for entry, text in zip(recordings, of_texts, strict=True)
    )


def _rounds(rows: DraftRows, reach_TK: FloatArray) -> Rounds:
    return rounds_by_text(reach_TK, np.diff(np.unique(rows.ends_T), prepend=0).tolist())
