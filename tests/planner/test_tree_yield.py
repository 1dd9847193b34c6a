"""Trees replayed from recordings: by hand where a tree is known, against grown trees where it is expected."""

import itertools
import math
import random
from collections.abc import Sequence
from functools import cache
from heapq import heappop, heappush

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.acceptance import chain_yield, counts_by_text, replay, sampled_yield
from planner.calibration import calibrated, calibration, risen_shares
from planner.contracts.errors import BadInputError
from planner.contracts.plan import ProbabilityCurve
from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from planner.copies import Copies, copies_yield
from planner.replay_trees import DraftRows, NodeCounts
from planner.static_tree import best_static_tree, static_tree_yield
from planner.tree_yield import hybrid_yield, sampled_tree_yield, tree_yield

SURE = (0.97, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
SPLIT = (0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0)


def recording(rows: Sequence[tuple[float, ...]], ranks: Sequence[int], domain: str = "code") -> AcceptanceRecording:
    """A text whose first token comes from the prefill, and which the draft finds the same there as everywhere."""
    every_row = [rows[0], *rows]
    every_rank = [0, *ranks]
    own = [row[rank] if rank < NUM_TOP_PROBS else 0.0 for row, rank in zip(every_row, every_rank, strict=True)]
    return AcceptanceRecording(
        domain=domain,
        prompt_tokens=1,
        fingerprint="d",
        ranks=tuple(every_rank),
        draft_probs=tuple(own),
        overlaps=tuple(0.6 for _ in every_rank),
        top_probs=tuple(itertools.chain.from_iterable(every_row)),
    )


# --- calibration ---


def test_a_calibration_finds_how_often_tokens_are_taken() -> None:
    # the draft gives .5 .3 .1; the target takes its first choice 7 times of 10, its second 2 times
    curve = calibration([recording([SPLIT] * 1000, ([0] * 7 + [1] * 2 + [9]) * 100)])
    assert curve is not None
    assert calibrated(np.array([0.5, 0.3, 0.1]), curve) == pytest.approx([0.7, 0.2, 0.0], abs=0.005)
    assert all(0 < share < 1 for share in curve.accepted_shares)


def test_a_calibration_says_how_often_each_choice_is_taken_on_average() -> None:
    # 1,001 positions, the first of which the recording adds: 701 first choices, 200 second ones, 100 beyond the eighth
    curve = calibration([recording([SPLIT] * 1000, ([0] * 7 + [1] * 2 + [9]) * 100)])
    assert curve is not None
    assert curve.by_rank_frac == pytest.approx((701 / 1001, 200 / 1001, *[0.0] * 6))


def test_too_few_candidates_calibrate_nothing() -> None:
    assert calibration([recording([SPLIT] * 20, [0] * 20)]) is None
    assert calibration([AcceptanceRecording(domain="code", prompt_tokens=1, fingerprint="d", ranks=(0,) * 500)]) is None


def test_a_calibration_has_few_points_that_rise() -> None:
    source = random.Random(1)
    rows = [tuple(sorted((source.random() / 8 for _ in range(8)), reverse=True)) for _ in range(2000)]
    curve = calibration([recording(rows, [source.randrange(9) for _ in rows])])
    assert curve is not None
    assert len(curve.draft_probs) <= 32
    assert list(curve.draft_probs) == sorted(set(curve.draft_probs))
    assert list(curve.accepted_shares) == sorted(curve.accepted_shares)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 9)), min_size=1, max_size=20))
def test_risen_shares_are_scipys_isotonic_regression(points: list[tuple[float, float]]) -> None:
    from scipy.optimize import isotonic_regression

    shares, weights = [share for share, _ in points], [weight for _, weight in points]
    assert risen_shares(shares, weights) == pytest.approx(isotonic_regression(shares, weights=weights).x)


# --- trees ---


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_rounds_that_are_certain_are_a_plain_replay(ranks: list[int], draft_len: int) -> None:
    reach_TK = np.zeros((2 * len(ranks), draft_len + 1))
    for start in range(len(ranks)):
        hits = [rank == 0 for rank in ranks[start : start + min(draft_len, len(ranks) - start - 1)]]
        depth = hits.index(False) if False in hits else len(hits)
        reach_TK[[start, len(ranks) + start], : depth + 1] = 1.0
    accepted = np.array(replay(ranks, draft_len))
    expected = [(accepted >= depth).sum() for depth in range(draft_len + 1)]
    assert counts_by_text(reach_TK, [len(ranks), len(ranks)]).tolist() == [expected, expected]


def test_a_tree_of_known_nodes_by_hand() -> None:
    # two nodes of SPLIT at every depth: .5 and .3 (.5 x .5 = .25 comes third), so no round gets further than one token.
    # ranks 0 1 1 2 | rounds: 0 accepted + its next; 1 accepted, but the last is never drafted: (1), (1): 4 in 2
    rows, ranks = [SPLIT] * 4, [0, 1, 1, 2]
    assert tree_yield([recording(rows, ranks)], 2, 4, None).mean == pytest.approx(2.0)
    # three nodes: .5, .3, .25: the path of two first choices joins. 0 0 2 2: (2), then 2 is the last: 4 in 2
    assert tree_yield([recording(rows, [0, 0, 2, 2])], 3, 4, None).survival[1] == pytest.approx(0.5)
    assert tree_yield([recording(rows, [0, 0, 2, 2])], 2, 4, None).survival[1] == 0.0


def test_a_sure_draft_grows_chains() -> None:
    text = recording([SURE] * 60, [0] * 60)
    for draft_len in (1, 4, 8):
        assert tree_yield([text], draft_len, draft_len, None).mean == pytest.approx(chain_yield([text], draft_len).mean)


def test_a_tree_never_outgrows_its_depth_and_more_nodes_never_accept_less() -> None:
    text = recording([SPLIT] * 300, random.Random(3).choices([0, 1, 2, 9], [5, 3, 1, 1], k=300))
    means = [tree_yield([text], num_nodes, 5, None).mean for num_nodes in (1, 2, 4, 8, 16, 32, 64)]
    assert means == sorted(means)
    assert means[-1] > means[0] + 1
    assert len(tree_yield([text], 64, 5, None).survival) == 5
    assert tree_yield([text], 1024, 5, None).mean <= 6


def grown(rows: Sequence[tuple[float, ...]], num_nodes: int, max_depth: int) -> set[tuple[int, ...]]:
    """The rank paths of the best-first tree in which every node at a depth has the row of that depth."""
    heap: list[tuple[float, tuple[int, ...]]] = [(-prob, (rank,)) for rank, prob in enumerate(rows[0]) if prob > 0]
    heap.sort()
    nodes: set[tuple[int, ...]] = set()
    while heap and len(nodes) < num_nodes:
        minus_product, path = heappop(heap)
        nodes.add(path)
        if len(path) < max_depth:
            for rank, prob in enumerate(rows[len(path)]):
                if prob > 0:
                    heappush(heap, (minus_product * prob, (*path, rank)))
    return nodes


@pytest.mark.parametrize(("num_nodes", "max_depth"), [(4, 4), (16, 6), (64, 8), (128, 8)])
def test_trees_of_a_draft_that_is_as_unsure_everywhere_are_as_large_as_counted(num_nodes: int, max_depth: int) -> None:
    # all rows alike: what hangs off the path is known, but for the depth at which the path was left
    row = (0.45, 0.21, 0.11, 0.062, 0.035, 0.021, 0.011, 0.0)
    source = random.Random(num_nodes)
    ranks = source.choices(range(9), [*row, 0.1], k=600)
    tree = grown([row] * max_depth, num_nodes, max_depth)
    accepted, start = [], 0
    while start < len(ranks):
        depth = 0
        while start + depth + 1 < len(ranks) and tuple(ranks[start : start + depth + 1]) in tree:
            depth += 1
        accepted.append(depth)
        start += depth + 1
    mean = len(ranks) / len(accepted)
    assert tree_yield([recording([row] * 600, ranks)], num_nodes, max_depth, None).mean == pytest.approx(mean, rel=0.05)


def test_counted_nodes_are_those_of_grown_trees() -> None:
    row = (0.45, 0.21, 0.11, 0.062, 0.035, 0.021, 0.011, 0.0)
    rows = DraftRows.of([recording([row] * 400, [0] * 400)], None)
    for least in (0.3, 0.1, 0.03, 0.01):
        products = {1: list(row)}
        for depth in (2, 3, 4):
            products[depth] = [a * b for a in products[depth - 1] for b in row]
        expected = sum(product >= least for level in products.values() for product in level)
        counts = rows.count_nodes(np.array([0]), np.array([-math.log(least)]), 4)
        assert float(counts.known_Q[0] + counts.below_Q[0]) == pytest.approx(expected, rel=0.1, abs=1.5)


def test_known_nodes_fit_or_do_not_and_expected_ones_do_so_by_chance() -> None:
    known = NodeCounts(np.array([4.0, 5.0, 6.0]), np.zeros(3))
    assert known.fits(5).tolist() == [1.0, 1.0, 0.0]
    expected = NodeCounts(np.full(4, 2.0), np.array([1.0, 8.0, 20.0, 200.0]))
    chances = expected.fits(12)
    assert chances.tolist() == sorted(chances, reverse=True)
    assert chances[0] > 0.99
    assert chances[1] == pytest.approx(0.72, abs=0.06)  # gamma of mean 8, variance 2 x 8 + 64/4 = 32, up to 10.5: .748
    assert chances[3] < 0.01


def test_a_token_beyond_the_recorded_choices_is_found_in_a_wide_tree() -> None:
    flat = (0.05,) * 8
    text = recording([flat] * 40, [0] * 40)
    ranks = (0, *[12] * 40)
    text = text.model_copy(update={"ranks": ranks, "draft_probs": (0.05, *[0.04] * 40)})
    # up to the 13th choice at the root: 12 lie before it, and all but 8 of them are expected, not recorded
    assert tree_yield([text], 8, 4, None).mean == 1.0
    assert tree_yield([text], 64, 4, None).mean > 1.9


def test_recordings_without_first_choices_are_passed_over_and_none_at_all_is_refused() -> None:
    old = AcceptanceRecording(domain="code", prompt_tokens=1, fingerprint="d", ranks=(0, 0, 0))
    assert tree_yield([old, recording([SURE] * 9, [0] * 9)], 4, 4, None).num_prompts == 1
    with pytest.raises(BadInputError, match="first choices"):
        tree_yield([old], 4, 4, None)
    with pytest.raises(BadInputError, match="first choices"):
        sampled_tree_yield([old], 4, 4, None)


def test_a_calibration_reorders_a_tree() -> None:
    # at its word the draft's second choice (.3) comes before a chain's second token (.25); not if .3 is never taken
    curve = ProbabilityCurve(draft_probs=(0.1, 0.3, 0.5), accepted_shares=(0.01, 0.02, 0.9))
    text = recording([SPLIT] * 60, [0] * 60)
    assert tree_yield([text], 2, 2, None).mean == pytest.approx(2.0)
    assert tree_yield([text], 2, 2, curve).mean == pytest.approx(3.0)


# --- sampled ---


def test_a_sampled_chain_is_a_tree_with_room_for_one_child() -> None:
    text = recording([SURE] * 80, [0] * 80)
    assert sampled_tree_yield([text], 3, 3, None).mean == pytest.approx(sampled_yield([text], 3).mean, rel=0.01)


def test_more_children_accept_more_of_a_sampled_text() -> None:
    text = recording([SPLIT] * 80, [0] * 80)
    one, three = (sampled_tree_yield([text], num_nodes, 1, None).mean for num_nodes in (1, 3))
    # overlap .6: one child is accepted with .6, three with 1 - .4 x .7 x .8 = .776; the last token is never drafted
    assert one == pytest.approx(1.6, rel=0.01)
    assert three == pytest.approx(1.776, rel=0.01)


# --- hybrids ---


def of_text(lengths: Sequence[int], hits: Sequence[int]) -> AcceptanceRecording:
    return AcceptanceRecording(
        domain="code",
        prompt_tokens=1,
        match_lengths=(0, *lengths),
        match_hits=(0, *hits),
        match_shares=(0.0, *[1.0] * len(hits)),
    )


def test_a_hybrid_without_matches_is_the_tree() -> None:
    text = recording([SPLIT] * 60, [0, 1, 2] * 20)
    alone = of_text([0] * 60, [0] * 60)
    assert hybrid_yield([text], [alone], 8, 4, 1, None) == tree_yield([text], 8, 4, None)
    short = of_text([2] * 60, [1] * 60)
    assert hybrid_yield([text], [short], 8, 4, 3, None) == tree_yield([text], 8, 4, None)


def test_a_hybrid_follows_copies_where_the_draft_is_lost() -> None:
    lost = recording([SPLIT] * 60, [9] * 60)
    repeated = of_text([16] * 60, [1] * 60)
    assert tree_yield([lost], 8, 4, None).mean == 1.0
    hybrid = hybrid_yield([lost], [repeated], 8, 4, 1, None)
    assert hybrid.mean == pytest.approx(copies_yield([repeated], 8, 8, 1).mean)  # deeper than the draft's 4 levels


def test_a_draft_goes_on_where_copies_end() -> None:
    # of three tokens the copy is right at the first, the draft at the second; the draft alone needs two rounds for them
    text = recording([SURE] * 60, [9, 0, 9] * 20)
    alone = of_text([12, 1, 1] * 20, [1, 0, 0] * 20)
    assert tree_yield([text], 6, 2, None).mean == pytest.approx(1.5)
    assert hybrid_yield([text], [alone], 24, 2, 4, None).mean == pytest.approx(3.0, abs=0.02)


def test_wrong_copies_take_nodes_from_the_draft() -> None:
    text = recording([SURE] * 60, [0] * 60)
    wrong = of_text([16] * 60, [0] * 60)
    assert hybrid_yield([text], [wrong], 4, 4, 1, None).mean <= tree_yield([text], 4, 4, None).mean


def test_recordings_of_other_texts_are_refused() -> None:
    text = recording([SURE] * 9, [0] * 9)
    with pytest.raises(BadInputError, match="do not belong together"):
        hybrid_yield([text], [of_text([0] * 8, [0] * 8)], 4, 4, 1, None)
    with pytest.raises(BadInputError, match="do not belong together"):
        hybrid_yield([text], [], 4, 4, 1, None)


def test_chances_of_copies_follow_the_texts_and_rest_on_the_table() -> None:
    few = Copies.of([of_text([5] * 4, [1] * 4)], 1)
    many = Copies.of([of_text([5] * 400, [0] * 400)], 1)
    # the table says .71, after one vote half its odds: .55. A request learns half of what is recorded of a text:
    # (2 + 8) / (2 x .55 + 8) of it with four hits, 8 / (200 x .55 + 8) of it with 400 misses
    once = 0.5 * 0.71 / (0.5 * 0.71 + 0.29)
    assert math.exp(-few.costs_T[0]) == pytest.approx(once * 10 / (2 * once + 8))
    assert math.exp(-many.costs_T[0]) == pytest.approx(once * 8 / (200 * once + 8))
    assert few.runs_T.tolist() == [4, 3, 2, 1]
    assert Copies.of([of_text([5, 1, 0], [1, 1, 0])], 2).runs_T.tolist() == [2, -1, -1]


# --- copies where one samples ---


def with_probs(text: AcceptanceRecording, probs: Sequence[float]) -> AcceptanceRecording:
    return text.model_copy(update={"match_probs": (0.0, *probs)})


def test_sampled_copies_that_are_sure_or_hopeless_are_the_greedy_ones() -> None:
    drawn = random.Random(3)
    hits = [int(drawn.random() < 0.8) for _ in range(200)]
    text = of_text([6] * 200, hits)
    for num_nodes in (2, 8):
        sampled = copies_yield([with_probs(text, list(map(float, hits)))], num_nodes, num_nodes, 1, is_sampled=True)
        assert sampled == copies_yield([text], num_nodes, num_nodes, 1)


def test_sampled_copies_are_taken_as_often_as_the_target_finds_them_probable() -> None:
    # chains of two, all of which the text goes on with, each token with .5: 1 + .5 + .25 tokens per round
    sure = with_probs(of_text([16] * 2000, [1] * 2000), [0.5] * 2000)
    assert copies_yield([sure], 2, 2, 1, is_sampled=True).mean == pytest.approx(1.75, rel=2e-3)
    # where the text goes on otherwise nothing is known of what follows a copy that was taken: 1 + .5
    split = with_probs(of_text([16] * 2000, [0] * 2000), [0.5] * 2000)
    assert copies_yield([split], 2, 2, 1, is_sampled=True).mean == pytest.approx(1.5, rel=2e-3)


def test_copies_whose_probabilities_were_not_recorded_are_not_predicted_where_one_samples() -> None:
    with pytest.raises(BadInputError, match=r"no recording.*\n?.*probabilities of matches"):
        copies_yield([of_text([6] * 9, [1] * 9)], 4, 4, 1, is_sampled=True)


# --- static trees ---


def test_a_static_tree_of_the_likeliest_ranks() -> None:
    # ranks 0 with .6, 1 with .3, 2 with .1: products .6, .36, .3, .216
    ranks = random.Random(4).choices([0, 1, 2], [6, 3, 1], k=5000)
    text = recording([SPLIT] * 5000, ranks)
    assert best_static_tree([text], 4, 3) == {(0,), (0, 0), (1,), (0, 0, 0)}


@cache
def drawn_ranks() -> tuple[int, ...]:
    return tuple(random.Random(9).choices([0, 1, 2, 9], [6, 2, 1, 1], k=400))


@pytest.mark.parametrize("draft_len", [1, 3, 6])
def test_a_static_chain_is_the_chain(draft_len: int) -> None:
    text = recording([SPLIT] * 400, drawn_ranks())
    chain = frozenset((0,) * depth for depth in range(1, draft_len + 1))
    assert static_tree_yield([text], chain) == chain_yield([text], draft_len)


def test_a_static_tree_with_more_nodes_never_accepts_less() -> None:
    text = recording([SPLIT] * 400, drawn_ranks())
    means = [static_tree_yield([text], best_static_tree([text], size, 6)).mean for size in (1, 4, 16, 64)]
    assert means == sorted(means)
