"""A tree under construction: which nodes a pass of the draft should expand, and which ones the target verifies.

A *slot* is a place for a node: the next most probable child of an expanded node, or a token copied from earlier text.
Its probability is its parent's times the j-th largest of the parent's row for the j-th child, whichever token comes to
fill it, so that no descendant outranks an ancestor; the tree is the most probable slots, of equal ones the oldest.

Greedy, a slot's token is known with its row. Sampled, children are drawn without replacement, and the proposal is exact
for three reasons. A slot is drawn only once it has been chosen, by probabilities and by rows that are known before the
draw. What has been drawn stays in the tree whatever its token brings about, and so do its ancestors. And the copied
tokens that are there when a node's first child is drawn stay too, while no others can join them, so that the tokens
taken out of the row for a draw are those of the earlier siblings that the proposal lists.

Shapes: W nodes expanded in one pass, K most probable tokens of each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from planner.contracts.plan import ProbabilityCurve
from runtime.proposal import ROOT, Source

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


_LEAST_LEFT = 1e-9  # of a row


@dataclass(slots=True, eq=False)
class Node:
    """A slot of the tree, and once it has a token the node that fills it."""

    parent: "Node | None"  # None: this is the root, the context's last token
    depth: int
    prob: float  # of the path from the root
    source: Source
    token: int | None = None  # None: not drawn yet
    row: int | None = None  # of its own row in the order of all rows, once it has been expanded
    stays: bool = False
    taken: list[int] | None = field(default=None, repr=False)  # tokens of its children, from the first draw on


def calibrated(draft_probs_WK: Floats, curve: ProbabilityCurve | None) -> Floats:
    """How often the target takes tokens of these probabilities; 0 where the draft excludes them."""
    if curve is None:
        return np.minimum(draft_probs_WK, 1.0)
    shares_WK = np.interp(draft_probs_WK, curve.draft_probs, curve.accepted_shares)
    return np.where(draft_probs_WK > 0, shares_WK, 0.0)


class TreeGrowth:
    """The most probable `num_nodes` slots that are known so far; some of them have rows of their own."""

    def __init__(self, num_nodes: int, max_depth: int, *, is_sampled: bool, most_children: int | None = None) -> None:
        self.root = Node(parent=None, depth=0, prob=1.0, source="model")
        self.slots: list[Node] = []  # oldest first, so parents before children and siblings in the order of trial
        self._num_nodes = num_nodes
        self._max_depth = max_depth  # of the children that rows bring
        self._is_sampled = is_sampled
        self._most_children = most_children  # that a row brings; None: as many as are worth it
        self._num_rows = 0
        self._copied: dict[Node, list[Node]] = {}  # children that are copies of earlier text

    def seed(self, tokens: Sequence[int], parents: Sequence[int], probs: Sequence[float]) -> None:
        """Copies of earlier text, each after its parent, with the probabilities of their paths; before any row."""
        assert self._num_rows == 0, "seeds come before rows"
        seeds: list[Node] = []
        for token, parent_idx, prob in zip(tokens, parents, probs, strict=True):
            parent = self.root if parent_idx == ROOT else seeds[parent_idx]
            seed = Node(parent, parent.depth + 1, min(prob, parent.prob), "ngram", token)
            seeds.append(seed)
            self._copied.setdefault(parent, []).append(seed)
        self._keep_best(seeds, self._num_nodes)

    def add_rows(self, nodes: Sequence[Node], top_tokens_WK: Ints, top_probs_WK: Floats) -> None:
        """Add what follows `nodes`: of each row the first tokens in falling probability; parents before children."""
        top_probs_WK = top_probs_WK.copy()
        is_new_WK = top_probs_WK > 0
        for index, node in enumerate(nodes):
            node.row = self._num_rows + index
            if self._copied.get(node):
                is_new_WK[index] &= self._beside_copies(node, top_tokens_WK[index], top_probs_WK[index])
        self._num_rows += len(nodes)
        if self._most_children is not None:
            is_new_WK &= is_new_WK.cumsum(axis=1) <= self._most_children
        paths_WK = np.array([node.prob for node in nodes])[:, None] * top_probs_WK * is_new_WK
        new = np.flatnonzero(paths_WK.ravel() > self._least_prob())
        new = np.sort(new[np.argsort(-paths_WK.ravel()[new], kind="stable")[: self._num_nodes]])
        num_columns = paths_WK.shape[1]
        tokens, probs = top_tokens_WK.ravel()[new].tolist(), paths_WK.ravel()[new].tolist()
        children = [
            Node(parent, parent.depth + 1, prob, "model", None if self._is_sampled else token)
            for parent, token, prob in zip(
                (nodes[idx] for idx in (new // num_columns).tolist()), tokens, probs, strict=True
            )
        ]
        self._keep_best(self.slots + children, self._num_nodes)

    def next_wave(self, most_nodes: int, num_known_tokens: int) -> list[Node]:
        """The most probable slots without rows of their own, parents first; only tokens below `num_known_tokens`.

        None whose children could not enter the tree, which are no more probable than itself.
        """
        least_prob = self._least_prob()
        candidates = [
            (-slot.prob, age)
            for age, slot in enumerate(self.slots)
            if slot.row is None
            and slot.prob > least_prob
            and slot.depth < self._max_depth
            and (slot.token is None or slot.token < num_known_tokens)
        ]
        wave: dict[Node, None] = {}
        for age in sorted(age for _, age in sorted(candidates)[:most_nodes]):
            slot = self.slots[age]
            assert slot.parent is not None
            if slot.parent.row is not None or slot.parent in wave:  # not below a copied token that the draft lacks
                wave[slot] = None
        return list(wave)

    def settle(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of `nodes` that need to be drawn: they, and all that their draws depend on, now stay in the tree."""
        undrawn = [node for node in nodes if node.token is None]
        for node in undrawn:
            parent = node.parent
            assert parent is not None
            if parent.taken is None:
                parent.taken = []
                for copy in self._copied.get(parent, ()):
                    assert copy.token is not None
                    parent.taken.append(copy.token)
                    copy.stays = True
            ancestor: Node | None = node
            while ancestor is not None and not ancestor.stays:
                ancestor.stays = True
                ancestor = ancestor.parent
        return undrawn

    def falling_probs(self) -> Floats:
        """The slots' path probabilities, the largest first."""
        return -np.sort([-slot.prob for slot in self.slots])

    def expected_probs(self, wave: Sequence[Node], mean_row_K: Floats) -> Floats:
        """What `falling_probs` would become if each node of the wave had a row of these probabilities."""
        lefts = [node.prob - sum(copy.prob for copy in self._copied.get(node, ())) for node in wave]
        children = np.outer(np.maximum(lefts, 0.0), mean_row_K[: self._most_children]).ravel()
        probs = np.concatenate([self.falling_probs(), children])
        return -np.sort(-probs)[: self._num_nodes]

    def cut(self, num_nodes: int) -> list[Node]:
        """The tree: its most probable `num_nodes` slots, more only where more must stay, each after its parent."""
        self._keep_best(self.slots, num_nodes)
        return self.slots

    def _beside_copies(self, node: Node, tokens_K: Ints, probs_K: Floats) -> npt.NDArray[np.bool_]:
        """Which tokens of a node's row are no copies of earlier text; they share what the copies leave them."""
        is_new_K = np.ones(len(tokens_K), dtype=np.bool_)
        for copy in self._copied[node]:
            for rank in np.flatnonzero(tokens_K == copy.token):
                is_new_K[rank] = False
                self._raise(copy, node.prob * float(probs_K[rank]))
        if node.prob > 0:
            left = max(0.0, 1 - sum(copy.prob for copy in self._copied[node]) / node.prob)
            left_by_row = max(1 - float(probs_K[~is_new_K].sum()), _LEAST_LEFT)
            probs_K[is_new_K] *= min(1.0, left / left_by_row)
        return is_new_K

    def _raise(self, copy: Node, prob: float) -> None:
        """Give a copy the probability that its row has for it, where that is larger; those after it rise with it."""
        if not 0 < copy.prob < prob:
            return
        factor = prob / copy.prob
        copy.prob = prob
        for child in self._copied.get(copy, ()):
            self._raise(child, min(child.prob * factor, prob))

    def _least_prob(self) -> float:
        """What a new slot must exceed."""
        if len(self.slots) < self._num_nodes:
            return 0.0
        return min((slot.prob for slot in self.slots if not slot.stays), default=1.0)

    def _keep_best(self, slots: Sequence[Node], num_nodes: int) -> None:
        leaving = [(-slot.prob, age) for age, slot in enumerate(slots) if not slot.stays]
        num_staying = len(slots) - len(leaving)
        gone = {age for _, age in sorted(leaving)[max(num_nodes - num_staying, 0) :]}
        for age in gone:
            slot = slots[age]
            if slot.source == "ngram" and slot.parent is not None:
                self._copied[slot.parent].remove(slot)
        self.slots = [slot for age, slot in enumerate(slots) if age not in gone]
