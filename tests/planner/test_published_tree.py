"""Trees by a published chain's curve: against the sum over all nodes, and against the chain."""

import itertools
import math

import pytest

from planner.acceptance import curve_yield
from planner.contracts.profile import AcceptanceCurve
from planner.published_tree import RANK_SHARES, published_tree_yield

CURVE = AcceptanceCurve(
    target="t", draft="d", domain="code", survival=(0.7, 0.4, 0.3), is_same_pair=True, source="made up"
)


def products(curve: AcceptanceCurve, max_depth: int) -> list[float]:
    """The chance of every path of up to so many nodes, the best first."""
    survival = curve_yield(curve, max_depth).survival
    hazards = [now / before for before, now in itertools.pairwise((1.0, *survival))]
    rows = [(hazard, *((1 - hazard) * share for share in RANK_SHARES)) for hazard in hazards]
    found = [math.prod(path) for depth in range(1, max_depth + 1) for path in itertools.product(*rows[:depth])]
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("num_nodes", "max_depth"), [(1, 1), (4, 2), (9, 3), (40, 3), (700, 4)])
def test_tokens_per_round_are_the_sum_of_the_best_products(num_nodes: int, max_depth: int) -> None:
    found = published_tree_yield(CURVE, num_nodes, max_depth)
    assert found.mean == pytest.approx(1 + sum(products(CURVE, max_depth)[:num_nodes]))
    assert len(found.survival) == max_depth


def test_a_tree_of_a_chains_length_yields_no_less_and_a_large_one_more() -> None:
    chain = curve_yield(CURVE, 8).mean
    assert published_tree_yield(CURVE, 8, 8).mean >= chain - 1e-9
    assert published_tree_yield(CURVE, 128, 8).mean > 1.2 * chain


def test_its_interval_is_wider_than_the_chains() -> None:
    assert published_tree_yield(CURVE, 16, 4).between_frac > curve_yield(CURVE, 4).between_frac
