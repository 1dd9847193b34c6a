"""A tree of the same shape in every round: which of the draft's choices it takes was settled by replay beforehand.

What pays is not asked: all of it is drafted and verified, so that passes have the same widths in every round. Sampled,
the children of a node are drawn together, as many as it has; the shape does not depend on what is drawn.

Shapes: W nodes expanded in one pass, K most probable tokens of each row.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

from planner.contracts.plan import RankPath
from runtime.draft.growth import Floats, Ints, Node, TreeGrowth


class StaticGrowth(TreeGrowth):
    """The tree of given paths, as far as the draft's rows offer tokens for them."""

    def __init__(self, paths: Sequence[RankPath], max_depth: int, *, is_sampled: bool) -> None:
        super().__init__(len(paths), max_depth, is_sampled=is_sampled)
        self._ranks: dict[RankPath, list[int]] = defaultdict(list)  # of a node's children
        for path in sorted(paths):
            if len(path) <= max_depth:
                self._ranks[path[:-1]].append(path[-1])
        self._path_of: dict[Node, RankPath] = {self.root: ()}
        self._children: dict[Node, list[Node]] = {}

    def add_rows(self, nodes: Sequence[Node], top_tokens_WK: Ints, top_probs_WK: Floats) -> None:
        """Add the children of `nodes`, by rank; sampled, as many as there are ranks."""
        for index, node in enumerate(nodes):
            node.row = self._num_rows + index
            path = self._path_of[node]
            self._children[node] = children = []
            for place, rank in enumerate(self._ranks[path]):
                column = place if self._is_sampled else rank
                if column >= top_probs_WK.shape[1] or top_probs_WK[index, column] <= 0:
                    break
                prob = node.prob * min(float(top_probs_WK[index, column]), 1.0)
                token = None if self._is_sampled else int(top_tokens_WK[index, column])
                child = Node(node, node.depth + 1, prob, "model", token)
                self._path_of[child] = (*path, rank)
                children.append(child)
            self.slots += children
        self._num_rows += len(nodes)

    def next_wave(self, most_nodes: int, num_known_tokens: int) -> list[Node]:
        """The nodes that have children but no row yet, the oldest first; only tokens below `num_known_tokens`."""
        waiting = (
            slot
            for slot in self.slots
            if slot.row is None
            and self._ranks.get(self._path_of[slot])
            and (slot.token is None or slot.token < num_known_tokens)
        )
        return list(islice(waiting, most_nodes))

    def settle(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes and all their siblings, in the order in which those are tried, as far as they need to be drawn."""
        parents = dict.fromkeys(node.parent for node in nodes if node.parent is not None)
        return super().settle([child for parent in parents for child in self._children[parent]])
