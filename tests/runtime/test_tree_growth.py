"""Which slots a tree keeps, and which of them a pass expands: on made-up rows, without any model."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from made_up_model import Floats, made_up_row

from planner.contracts.plan import ProbabilityCurve
from runtime.draft.growth import Node, TreeGrowth, calibrated
from runtime.proposal import ROOT

VOCAB_SIZE = 5
Path = tuple[int, ...]


def path_of(node: Node) -> Path:
    return () if node.parent is None or node.token is None else (*path_of(node.parent), node.token)


def top_rows(nodes: Sequence[Node], seed: int) -> tuple[np.ndarray, Floats]:
    rows = np.stack([made_up_row(path_of(node), VOCAB_SIZE, seed) for node in nodes])
    order = np.argsort(-rows, axis=1, kind="stable")
    return order, np.take_along_axis(rows, order, axis=1)


def grown(growth: TreeGrowth, pass_nodes: int, seed: int = 0) -> dict[Path, float]:
    """Path probabilities of the tree when nothing is left to expand."""
    wave = [growth.root]
    while wave:
        growth.add_rows(wave, *top_rows(wave, seed))
        wave = growth.next_wave(pass_nodes, VOCAB_SIZE)
    return {path_of(node): node.prob for node in growth.cut(1000)}


def brute_force(num_nodes: int, max_depth: int, most_children: int = VOCAB_SIZE, seed: int = 0) -> dict[Path, float]:
    """The most probable paths of all."""
    probs: dict[Path, float] = {(): 1.0}
    for depth in range(max_depth):
        for path in itertools.product(range(VOCAB_SIZE), repeat=depth):
            row = made_up_row(path, VOCAB_SIZE, seed)
            for token in np.argsort(-row)[:most_children].tolist() if path in probs else ():
                probs[(*path, token)] = probs[path] * float(row[token])
    del probs[()]
    return dict(sorted(probs.items(), key=lambda item: -item[1])[:num_nodes])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pass_nodes", [1, 3, 40])
@pytest.mark.parametrize(("num_nodes", "max_depth"), [(1, 1), (1, 4), (4, 1), (7, 3), (20, 4), (60, 4)])
def test_a_fully_grown_greedy_tree_is_the_most_probable_paths_of_all(
    num_nodes: int, max_depth: int, pass_nodes: int, seed: int
) -> None:
    tree = grown(TreeGrowth(num_nodes, max_depth, is_sampled=False), pass_nodes, seed)
    assert tree == pytest.approx(brute_force(num_nodes, max_depth, seed=seed))


@pytest.mark.parametrize("most_children", [1, 2])
def test_no_node_gets_more_children_than_allowed(most_children: int) -> None:
    tree = grown(TreeGrowth(12, 4, is_sampled=False, most_children=most_children), 2)
    assert tree == pytest.approx(brute_force(12, 4, most_children))


def test_nodes_are_listed_after_their_parents_and_siblings_by_falling_probability() -> None:
    growth = TreeGrowth(30, 4, is_sampled=False)
    grown(growth, 5)
    nodes = growth.cut(30)
    places = {growth.root: ROOT} | {node: place for place, node in enumerate(nodes)}
    for node in nodes:
        assert node.parent is not None
        assert places[node.parent] < places[node]
    for parent in places:
        probs = [node.prob for node in nodes if node.parent is parent]
        assert probs == sorted(probs, reverse=True)


def test_a_wave_holds_the_most_probable_unseen_nodes_and_never_one_at_the_depth_limit() -> None:
    growth = TreeGrowth(8, 2, is_sampled=False)
    growth.add_rows([growth.root], *top_rows([growth.root], 0))
    row = np.sort(made_up_row((), VOCAB_SIZE))[::-1]
    assert [node.prob for node in growth.next_wave(3, VOCAB_SIZE)] == pytest.approx(row[:3])
    wave = growth.next_wave(50, VOCAB_SIZE)
    assert len(wave) == VOCAB_SIZE
    growth.add_rows(wave, *top_rows(wave, 0))
    assert growth.next_wave(50, VOCAB_SIZE) == []


def test_calibration_is_the_curve_between_its_points_and_nothing_where_the_draft_excludes() -> None:
    curve = ProbabilityCurve(draft_probs=(0.0, 0.5, 1.0), accepted_shares=(0.1, 0.3, 0.9))
    np.testing.assert_allclose(calibrated(np.array([0.0, 0.25, 0.75, 1.0]), curve), [0.0, 0.2, 0.6, 0.9])
    np.testing.assert_allclose(calibrated(np.array([0.0, 0.25]), None), [0.0, 0.25])


# copies of earlier text

TOKENS, PROBS = np.array([[3, 1, 0, 2, 4]]), np.array([[0.5, 0.25, 0.125, 0.1, 0.025]])


def test_a_copy_is_the_models_own_child_with_the_larger_probability_and_the_others_share_what_is_left() -> None:
    growth = TreeGrowth(6, 4, is_sampled=False)
    growth.seed([1, 3, 7], [ROOT, ROOT, 0], [0.2, 0.6, 0.1])
    growth.add_rows([growth.root], TOKENS, PROBS)
    found = [(path_of(node), node.source, round(node.prob, 9)) for node in growth.cut(6)]
    assert found == [
        ((1,), "ngram", 0.25),  # raised from 0.2, and what follows it with it
        ((3,), "ngram", 0.6),
        ((1, 7), "ngram", 0.125),
        ((0,), "model", 0.075),  # the copies leave 0.15, of which the row would give the others 0.25
        ((2,), "model", 0.06),
        ((4,), "model", 0.015),
    ]


def test_copies_that_are_less_probable_than_what_the_model_drafts_leave_with_all_that_follows_them() -> None:
    growth = TreeGrowth(4, 4, is_sampled=False)
    growth.seed([7, 8, 9], [ROOT, 0, 1], [0.05, 0.04, 0.03])
    growth.add_rows([growth.root], TOKENS, PROBS)
    assert [path_of(node) for node in growth.cut(4)] == [(3,), (1,), (0,), (2,)]


def test_a_wave_goes_down_a_path_of_copies_at_once_but_not_past_a_token_that_the_draft_lacks() -> None:
    growth = TreeGrowth(10, 5, is_sampled=False)
    growth.seed([1, 2, 9, 3], [ROOT, 0, 1, 2], [0.9, 0.9, 0.8, 0.8])
    growth.add_rows([growth.root], TOKENS, PROBS)
    assert [path_of(node) for node in growth.next_wave(9, 5)][:2] == [(1,), (1, 2)]
    assert all(9 not in path_of(node) for node in growth.next_wave(9, 5))
    assert [path_of(node) for node in growth.next_wave(9, 10)][:4] == [(1,), (1, 2), (1, 2, 9), (1, 2, 9, 3)]


# sampled


def test_what_was_drawn_stays_whatever_becomes_more_probable() -> None:
    growth = TreeGrowth(4, 4, is_sampled=True)
    growth.add_rows([growth.root], TOKENS, PROBS)
    wave = growth.next_wave(3, 5)
    assert growth.settle(wave) == wave
    for token, node in zip((3, 1, 0), wave, strict=True):
        node.token = token
    growth.add_rows(wave[:1], TOKENS, np.array([[0.9, 0.1, 0.0, 0.0, 0.0]]))  # 0.45 would outrank 0.25 and 0.125
    assert growth.cut(3) == wave == growth.cut(1)


def test_sampled_slots_have_the_probabilities_of_the_rows_largest_tokens_whatever_is_drawn() -> None:
    growth = TreeGrowth(9, 4, is_sampled=True)
    growth.add_rows([growth.root], TOKENS, PROBS)
    (best,) = growth.next_wave(1, 5)
    assert (best.token, best.prob) == (None, 0.5)
    growth.settle([best])
    best.token = 4  # of probability 0.025
    growth.add_rows([best], TOKENS, PROBS)
    assert growth.falling_probs()[:4].tolist() == [0.5, 0.25, 0.25, 0.125]


def test_copies_beside_a_drawn_token_stay_and_are_taken_out_of_its_row() -> None:
    growth = TreeGrowth(4, 3, is_sampled=True)
    growth.seed([1, 9], [ROOT, ROOT], [0.2, 0.01])
    growth.add_rows([growth.root], TOKENS, PROBS)
    best = growth.next_wave(1, 5)
    growth.settle(best)
    assert growth.root.taken == [1]  # 9 had left before
    best[0].token = 3
    growth.add_rows(best, TOKENS, np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))
    assert (1,) in {path_of(node) for node in growth.cut(2)}
