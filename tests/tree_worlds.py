"""A drafter of trees over tables of probabilities, for tests: children are drawn without replacement, in their order.

Rows depend on all tokens before them, so that a row of the wrong node shows.

Shapes: V vocabulary, T = N + 1 target rows of N nodes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.proposal import ROOT, Proposal, Verdict
from runtime.verify import verify_sampled

Floats = npt.NDArray[np.float64]
Rows = tuple[npt.NDArray[np.floating], ...]  # by the tokens before: entry d of shape (V,) * (d + 1)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a tree, below an earlier slot or the root; whether it is wanted may depend on the tokens so far."""

    parent: int = ROOT
    is_drawn: bool = True
    wanted: Callable[[dict[int, int]], bool] = lambda tokens: True  # of the slots before


@dataclass(frozen=True, slots=True)
class Node:
    """A slot's token, and the tokens before it since the context."""

    slot: int
    token: int
    before: tuple[int, ...]
    is_drawn: bool


Tree = tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A target, a draft, and the tree that a drafter draws; `edit`, `declare` and `verify` are what a bug replaces.

    In a correct program nothing happens to a tree after its last draw, the rows declared are those drawn from, and the
    verdict is the production code's. A drawn token is another than its copied siblings', or, where that is not avoided,
    is not listed if it is the same.
    """

    target_rows: Rows
    draft_rows: Rows
    slots: tuple[Slot, ...]
    edit: Callable[["World", Tree], Tree] = lambda world, tree: tree
    declare: Callable[["World", Tree], Proposal] = lambda world, tree: proposal_of(world, tree)
    verify: Callable[[Tensor, Proposal, Sequence[float]], Verdict] = verify_sampled
    avoids_copied: bool = True

    @property
    def vocabulary(self) -> int:
        return len(self.target_rows[0])


def options(world: World, tree: Tree, slot_idx: int) -> Floats | None:
    """The row (V) that a slot's token is drawn from, all on one token if it is copied; None where it stays empty."""
    slot = world.slots[slot_idx]
    nodes = {node.slot: node for node in tree}
    if slot.parent != ROOT and slot.parent not in nodes:
        return None
    if not slot.wanted({idx: node.token for idx, node in nodes.items()}):
        return None
    before = () if slot.parent == ROOT else (*nodes[slot.parent].before, nodes[slot.parent].token)
    taken = [node.token for node in tree if node.before == before and (node.is_drawn or world.avoids_copied)]
    if slot.is_drawn:
        row_V = world.draft_rows[len(before)][before].astype(np.float64)[: world.vocabulary]
    else:
        row_V = np.eye(world.vocabulary)[(3 + 5 * sum(before)) % world.vocabulary]
    row_V[[token for token in taken if token < len(row_V)]] = 0.0
    return row_V / row_V.sum() if row_V.any() else None


def with_node(world: World, tree: Tree, slot_idx: int, token: int) -> Tree:
    slot = world.slots[slot_idx]
    before = next(((*node.before, node.token) for node in tree if node.slot == slot.parent), ())
    if (*before, token) in node_indices(tree):  # drawn, and not listed as a copied sibling has it
        return tree
    return (*tree, Node(slot_idx, token, before, slot.is_drawn))


def all_trees(world: World, tree: Tree = (), slot_idx: int = 0) -> Iterator[tuple[float, Tree]]:
    """Every tree that can be drafted, with its probability."""
    if slot_idx == len(world.slots):
        yield 1.0, tree
        return
    row_V = options(world, tree, slot_idx)
    if row_V is None:
        yield from all_trees(world, tree, slot_idx + 1)
        return
    for token in np.flatnonzero(row_V).tolist():
        for weight, whole in all_trees(world, with_node(world, tree, slot_idx, token), slot_idx + 1):
            yield float(row_V[token]) * weight, whole


def sampled_tree(world: World, generator: np.random.Generator) -> Tree:
    tree: Tree = ()
    for slot_idx in range(len(world.slots)):
        row_V = options(world, tree, slot_idx)
        if row_V is not None:
            tree = with_node(world, tree, slot_idx, drawn_from(row_V, generator))
    return tree


def drawn_from(row_V: npt.NDArray[np.floating], generator: np.random.Generator) -> int:
    cumulative_V = row_V.cumsum(dtype=np.float64)
    return int(cumulative_V.searchsorted(generator.random() * cumulative_V[-1], side="right"))


def node_indices(tree: Tree) -> dict[tuple[int, ...], int]:
    """The node that ends each text."""
    return {(): ROOT} | {(*node.before, node.token): idx for idx, node in enumerate(tree)}


def proposal_of(world: World, tree: Tree) -> Proposal:
    """The tree as a drafter declares it: one row for all children of a node."""
    index_of = node_indices(tree)
    befores = list(dict.fromkeys(node.before for node in tree if node.is_drawn))
    rows = [world.draft_rows[len(before)][before] for before in befores]
    return Proposal(
        tokens=tuple(node.token for node in tree),
        parents=tuple(index_of[node.before] for node in tree),
        sources=tuple("model" if node.is_drawn else "ngram" for node in tree),
        rows_RV=torch.from_numpy(np.stack(rows)) if rows else None,
        row_of=tuple(befores.index(node.before) if node.is_drawn else None for node in tree),
    )


def target_rows_of(world: World, tree: Tree) -> Tensor:
    """The target's rows (T, V) after the context and after each node."""
    texts = [(), *((*node.before, node.token) for node in tree)]
    return torch.from_numpy(np.stack([world.target_rows[len(text)][text] for text in texts]))


def emitted_tokens(proposal: Proposal, verdict: Verdict) -> tuple[int, ...]:
    return (*(proposal.tokens[node] for node in verdict.path), verdict.next_token)
