"""Sampled trees leave the target's law as it is, to the last digit; where a rule of theirs is broken, they do not."""

from collections.abc import Sequence

import pytest
from drafted_trees import tree_drafter
from made_up_model import Floats, MadeUpModel, made_up_row
from tree_law import DRAFT_SEED, law_error

from runtime.draft import tree as tree_module
from runtime.draft.costs import Costs
from runtime.draft.growth import Node, TreeGrowth
from runtime.draft.ngram import NodeCandidates
from runtime.draft.tree import TreeDrafter
from runtime.proposal import ROOT, Proposal, Verdict
from runtime.sampling import SamplingSettings

pytestmark = pytest.mark.usefixtures("one_thread")


class FixedCopies:
    """Always the same copies of earlier text."""

    def candidates(self, context: Sequence[int], num_nodes: int, max_depth: int) -> NodeCandidates:
        return NodeCandidates((3, 0, 1), (ROOT, ROOT, 0), (0.2, 0.15, 0.1))

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        raise AssertionError


class TokenReadingStop:
    """A stop rule that ends drafting, and cuts the tree, by what drawn tokens brought about."""

    def __init__(self, *_: object) -> None:
        self.growth: TreeGrowth | None = None

    def start_round(self) -> None:
        pass

    def pays(self, growth: TreeGrowth, wave: Sequence[object]) -> bool:
        return len(growth.slots) == 0 or float((growth.falling_probs() * 1000).sum() % 2) < 1.2

    def add_rows(self, probs_WK: Floats) -> None:
        pass

    def size(self, growth: TreeGrowth) -> int:
        return 1 + int((growth.falling_probs() * 1000).sum()) % 4


Shape = tuple[int, int, int, int]  # nodes, depth, nodes per pass, vocabulary
LAWS: tuple[tuple[Shape, bool], ...] = (
    ((3, 1, 1, 3), False),
    ((3, 3, 1, 3), False),
    ((5, 3, 3, 2), False),
    ((6, 4, 2, 3), False),
    ((4, 2, 1, 4), True),
    ((5, 3, 2, 4), True),
)


def law_drafter(shape: Shape, *, has_copies: bool, has_stop: bool) -> TreeDrafter:
    num_nodes, max_depth, pass_nodes, vocab_size = shape
    model = MadeUpModel(lambda text: made_up_row(text, vocab_size, DRAFT_SEED), vocab_size)
    return tree_drafter(
        model.as_cached(),
        SamplingSettings(temperature=1.0, seed=0),
        num_nodes=num_nodes,
        max_depth=max_depth,
        pass_nodes=pass_nodes,
        vocab_size=vocab_size,
        ngram=FixedCopies() if has_copies else None,  # type: ignore[arg-type]
        costs=Costs.free() if has_stop else None,
    )


@pytest.mark.parametrize(("shape", "has_copies"), LAWS)
@pytest.mark.parametrize("has_stop", [False, True])
def test_sampled_trees_leave_the_targets_law_as_it_is(
    shape: Shape, has_copies: bool, has_stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "StopRule", TokenReadingStop)
    error = law_error(lambda: law_drafter(shape, has_copies=has_copies, has_stop=has_stop), shape[3], monkeypatch)
    assert error < 1e-12


@pytest.mark.parametrize(("shape", "has_copies"), [((6, 4, 2, 3), False), ((5, 3, 2, 4), True)])
def test_the_law_is_another_where_drawn_nodes_or_copies_beside_them_may_leave(
    shape: Shape, has_copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = TreeGrowth.settle

    def settle_without_staying(self: TreeGrowth, nodes: Sequence[Node]) -> list[Node]:
        undrawn = settle(self, nodes)
        for slot in self.slots:
            is_parent = any(other.parent is slot for other in self.slots)
            slot.stays &= has_copies and (slot.source == "model" or is_parent)
        return undrawn

    monkeypatch.setattr(TreeGrowth, "settle", settle_without_staying)
    monkeypatch.setattr(tree_module, "StopRule", TokenReadingStop)
    error = law_error(lambda: law_drafter(shape, has_copies=has_copies, has_stop=True), shape[3], monkeypatch)
    assert error > 1e-3
