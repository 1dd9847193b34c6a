"""How right a draft's probabilities are in this run, and whether its first pass pays by what is expected of it."""

import numpy as np
import pytest

from planner.contracts.plan import RoundCosts
from runtime.draft.costs import Costs
from runtime.draft.growth import Node, TreeGrowth
from runtime.draft.stop import Foresight, StopRule
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


# --- whether a pass pays ---


def first_pass_pays(start_row: tuple[float, ...]) -> bool:
    """Of a round that takes 1 s, .1 s more for each token verified and .02 s for a pass of the draft."""
    table = RoundCosts(
        num_verified=(1, 65),
        round_s=(1.0, 7.4),
        hidden_s=(0.0, 0.0),
        pass_nodes=(1, 64),
        draft_pass_s=(0.02, 0.02),
    )
    growth = TreeGrowth(64, 8, is_sampled=False)
    return StopRule(Costs(table), 8, start_row).pays(growth, [growth.root])


def test_what_a_plan_expects_of_a_row_decides_the_first_pass() -> None:
    # a row of .13 brings .13 - .1 of verification = .03 tokens for .02 s, in which one token a second brings .02
    assert first_pass_pays((0.13, 0.05))
    assert not first_pass_pays((0.11, 0.05))  # .01 for .02
    assert first_pass_pays(())  # half of the first choices are right where nothing is known
