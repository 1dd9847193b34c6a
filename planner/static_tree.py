"""Trees of one shape for every round, by the ranks that a draft's tokens have: the best one, and its exact replay."""

from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from planner.acceptance import FloatArray, Yield, counts_of, stacked, yield_of
from planner.contracts.plan import MAX_TREE_NODES, RankPath
from planner.contracts.profile import AcceptanceRecording
from planner.replay_trees import NUM_RANKS


def best_static_tree(
    recordings: Sequence[AcceptanceRecording], num_nodes: int, max_depth: int, most_expanded: int = MAX_TREE_NODES
) -> frozenset[RankPath]:
    """The nodes with the largest products of P(rank at that depth | the target's path got so far), a tree.

    Best if ranks at different depths were independent given that: the sum of its products is then the most that so many
    nodes accept. Depths are counted from every position, as if rounds started anywhere. At most `most_expanded` nodes
    of a level have children.
    """
    shares_DR = _rank_shares(recordings, max_depth)
    heap: list[tuple[float, RankPath]] = [(-float(share), (rank,)) for rank, share in enumerate(shares_DR[0])]
    heap.sort()
    chosen: set[RankPath] = set()
    expanded: dict[int, set[RankPath]] = defaultdict(set)  # by depth
    while heap and len(chosen) < num_nodes:
        minus_product, path = heappop(heap)
        if minus_product == 0:
            break
        parent = path[:-1]
        beside = expanded[len(parent)]
        if parent not in beside and len(beside) == most_expanded:
            continue
        beside.add(parent)
        chosen.add(path)
        if len(path) < max_depth:
            for rank, share in enumerate(shares_DR[len(path)]):
                heappush(heap, (minus_product * float(share), (*path, rank)))
    return frozenset(chosen)


def static_tree_yield(recordings: Sequence[AcceptanceRecording], tree: frozenset[RankPath]) -> Yield:
    """Tokens per round of trees of this shape under greedy verification, exactly.

    Raises: BadInputError, where no draft was recorded.
    """
    max_depth = max(map(len, tree), default=0)
    counts_PK = [
        counts_of(_replay(recording.ranks[1:], tree), max_depth) for recording in recordings if len(recording.ranks) > 1
    ]
    return yield_of(stacked(counts_PK, "ranks of a draft"))


def _replay(ranks: Sequence[int], tree: frozenset[RankPath]) -> list[int]:
    """Accepted tokens of each round; the last token of a round is the target's own."""
    accepted = []
    start = 0
    while start < len(ranks):
        depth = 0
        while start + depth + 1 < len(ranks) and tuple(ranks[start : start + depth + 1]) in tree:
            depth += 1
        accepted.append(depth)
        start += depth + 1
    return accepted


def _rank_shares(recordings: Sequence[AcceptanceRecording], max_depth: int) -> FloatArray:
    """P(rank | depth) over all positions before which so many tokens were within NUM_RANKS."""
    counts_DR = np.zeros((max_depth, NUM_RANKS))
    for recording in recordings:
        ranks_T = np.array(recording.ranks[1:], dtype=np.int64)
        alive = np.arange(len(ranks_T))
        for depth in range(max_depth):
            alive = alive[alive + depth < len(ranks_T)]
            alive = alive[ranks_T[alive + depth] < NUM_RANKS]
            counts_DR[depth] += np.bincount(ranks_T[alive + depth], minlength=NUM_RANKS)
    totals_D = counts_DR.sum(axis=1, keepdims=True)
    shares_DR: FloatArray = counts_DR / np.maximum(totals_D, 1.0)
    return shares_DR
