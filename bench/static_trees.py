"""Trees of one shape for every round, by replayed ranks: what dynamic trees have to beat.

The shape is the best one by other texts, its size the best one known afterwards. A round costs the whole tree: every
node is verified, and each level takes a pass of the draft over those of its nodes that have children. Ranks beyond
those whose probabilities were recorded are in no tree, as in the replays of dynamic ones.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

from bench.policies import MOST_NODES, Tally, pass_cost, total
from bench.profiled import known_before, of_draft
from bench.texts import Recording
from planner.contracts.plan import RankPath
from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from planner.replay_trees import NUM_RANKS
from planner.static_tree import best_static_tree, static_tree_yield

NODES, DEPTHS = (1, 2, 4, 8, 16, 32, MOST_NODES), (1, 2, 4, 8)
Size = tuple[int, int]  # nodes, depth
Tree = frozenset[RankPath]


class StaticTrees:
    """The shapes of every size for some texts."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        within = lru_cache(maxsize=None)(_within_recorded)
        self._entries = [within(of_draft(one)) for one in recordings]
        self._known = [tuple(within(entry) for entry in entries) for entries in known_before(recordings)]
        self._shape = lru_cache(maxsize=None)(best_static_tree)

    def best(self, chosen: Sequence[int], verify_cost: float, draft_cost: float) -> tuple[Size, Tally]:
        """The size that is best over the chosen texts, and what it writes and costs there."""
        tallies = {
            size: total(
                tally(self._shape(self._known[index], *size), self._entries[index], verify_cost, draft_cost)
                for index in chosen
            )
            for size in product(NODES, DEPTHS)
            if size[1] <= size[0]
        }
        best = max(tallies, key=lambda size: tallies[size].rate)
        return best, tallies[best]


def _within_recorded(recording: AcceptanceRecording) -> AcceptanceRecording:
    ranks = tuple(rank if rank < NUM_TOP_PROBS else NUM_RANKS for rank in recording.ranks)
    return recording.model_copy(update={"ranks": ranks})


def tally(tree: Tree, recording: AcceptanceRecording, verify_cost: float, draft_cost: float) -> Tally:
    """One text, from its second token on."""
    num_tokens = len(recording.ranks) - 1
    num_rounds = num_tokens / static_tree_yield([recording], tree).mean
    return Tally(num_tokens, num_rounds * round_cost(tree, verify_cost, draft_cost))


def round_cost(tree: Tree, verify_cost: float, draft_cost: float) -> float:
    """What a round costs that drafts and verifies the whole tree; the root is the first level."""
    expanded = Counter(len(path) for path in {path[:-1] for path in tree})
    return 1 + verify_cost * len(tree) + sum(pass_cost(draft_cost, num_nodes) for num_nodes in expanded.values())
