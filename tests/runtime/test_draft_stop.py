"""How right a draft's probabilities are in this run: what is counted, how it fades, and what it scales."""

import numpy as np
import pytest

from runtime.draft.growth import Node
from runtime.draft.stop import Foresight
from runtime.proposal import ROOT, Proposal, Verdict


def nodes_of(*shares: float) -> list[Node]:
    """A chain of nodes, each with that chance once its parent is accepted."""
    parent = Node(parent=None, depth=0, prob=1.0, source="model")
    found = []
    for share in shares:
        parent = Node(parent=parent, depth=parent.depth + 1, prob=parent.prob * share, source="model", token=1)
        found.append(parent)
    return found


def run(foresight: Foresight, num_rounds: int, num_accepted: int, *shares: float) -> None:
    for _ in range(num_rounds):
        foresight.foresee(nodes_of(*(share * foresight.factor for share in shares)))
        foresight.observe(Proposal.chain((1,) * len(shares)), Verdict(tuple(range(num_accepted)), 2))


def test_a_draft_that_keeps_its_word_is_left_alone() -> None:
    foresight = Foresight()
    run(foresight, 100, 1, 1.0)
    assert foresight.factor == pytest.approx(1.0)


def test_a_draft_that_promises_twice_what_it_holds_is_believed_half() -> None:
    foresight = Foresight()
    for num_accepted in (0, 1) * 200:
        run(foresight, 1, num_accepted, 1.0)
    assert foresight.factor == pytest.approx(0.54, abs=0.02)  # of the 4 tokens it started from a few are left


def test_nodes_that_the_target_was_not_asked_about_do_not_count() -> None:
    foresight = Foresight()
    run(foresight, 50, 0, 1.0, 1.0, 1.0)  # the first is rejected, the others hang on it
    alone = Foresight()
    run(alone, 50, 0, 1.0)
    assert foresight.factor == pytest.approx(alone.factor)


def test_copies_say_nothing_of_the_model() -> None:
    foresight = Foresight()
    foresight.foresee(nodes_of(0.9))
    foresight.observe(Proposal(tokens=(1,), parents=(ROOT,), sources=("ngram",), row_of=(None,)), Verdict((), 2))
    assert foresight.factor == 1.0


def test_what_was_seen_fades_where_nothing_is_drafted_any_more() -> None:
    foresight = Foresight()
    run(foresight, 50, 0, 1.0)
    distrusted = foresight.factor
    run(foresight, 200, 0)
    assert distrusted < 0.2 < 0.8 < foresight.factor


def test_no_row_holds_more_than_everything() -> None:
    foresight = Foresight()
    run(foresight, 50, 1, 0.25)
    rows = foresight.corrected(np.array([[0.4, 0.3], [0.1, 0.05]]))
    np.testing.assert_allclose(rows.sum(axis=1), [1.0, 0.15 * foresight.factor])
    assert rows[0, 0] / rows[0, 1] == pytest.approx(4 / 3)
