"""Limits on the cost of a path, and rounds that keep to them: by hand, and what must hold whatever was recorded."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.acceptance import Yield
from planner.contracts.profile import NUM_TOP_PROBS, AcceptanceRecording
from planner.copies import Copies, copies_yield
from planner.limits import NO_LIMITS, Limits, best_yield, wave_of
from planner.replay_trees import DraftRows, NodeCounts
from planner.tree_yield import hybrid_yield, sampled_tree_yield, tree_yield

SPLIT = (0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0)
NOTHING_BROUGHT = np.zeros(0)


def drafted(ranks: Sequence[int]) -> AcceptanceRecording:
    """A text that the draft finds SPLIT everywhere; its first token comes from the prefill."""
    every_rank = (0, *ranks)
    return AcceptanceRecording(
        domain="code",
        prompt_tokens=1,
        fingerprint="d",
        ranks=every_rank,
        draft_probs=tuple(SPLIT[rank] if rank < NUM_TOP_PROBS else 0.0 for rank in every_rank),
        overlaps=(0.6,) * len(every_rank),
        top_probs=SPLIT * len(every_rank),
    )


def alone(lengths: Sequence[int], hits: Sequence[int]) -> AcceptanceRecording:
    """A text of its own matches."""
    return AcceptanceRecording(
        domain="code",
        prompt_tokens=1,
        match_lengths=(0, *lengths),
        match_hits=(0, *hits),
        match_shares=(0.0, *[1.0] * len(hits)),
    )


def drawn_texts(seed: int, num_tokens: int = 80) -> tuple[AcceptanceRecording, AcceptanceRecording]:
    """A draft that is right as often as it says, and copies of which every eighth is wrong."""
    source = random.Random(seed)
    ranks = source.choices([0, 1, 2, 9], [5, 3, 1, 1], k=num_tokens)
    lengths = source.choices([0, 2, 8, 16], k=num_tokens)
    return drafted(ranks), alone(lengths, [int(length > 0 and source.random() < 0.88) for length in lengths])


# --- what pays ---


def test_a_wave_is_the_likeliest_node_with_siblings_and_cousins_and_their_children() -> None:
    # r = .5, .25: r_i r_j r_k / .5^2 is .5, three times .25, three times .125, .0625: in sum .75^3 / .25
    assert wave_of((0.5, 0.25, 0.0)).tolist() == [0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.0625]
    assert wave_of(()).tolist() == []


def test_limits_by_hand() -> None:
    wave = wave_of((0.5, 0.25))
    # a node that costs .1 tokens: -ln .1 = 2.30; a free one: passes of .25 pay from .25 / 1.6875 = .148 on: 1.91
    assert Limits.of(0.1, 0.0, NOTHING_BROUGHT) == Limits(verified=2.25, expanded=math.inf)
    assert Limits.of(0.0, 0.25, wave) == Limits(verified=math.inf, expanded=2.0)
    # both: the first four children (1.25) have to bring .25 + 4 x .1: from .52 on, .65; with three or five it is more
    assert Limits.of(0.1, 0.25, wave) == Limits(verified=2.25, expanded=0.75)
    # a pass of two tokens never pays
    assert Limits.of(0.1, 2.0, wave).expanded < 0
    assert Limits.of(0.0, 0.0, wave) == NO_LIMITS


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_what_costs_more_never_pays_for_longer(node: float, dearer: float, a_pass: float, more: float) -> None:
    wave = wave_of((0.6, 0.2, 0.1))
    near, far = Limits.of(node + dearer, a_pass + more, wave), Limits.of(node, a_pass, wave)
    assert near.verified <= far.verified
    assert near.expanded <= far.expanded


def fake(limits: Limits) -> Yield:
    """Tokens that rise ever more slowly with nodes, of which there are e^cost; no draft."""
    nodes = math.exp(min(limits.verified, 4.0))
    return Yield(
        mean=1 + math.log(nodes), between_frac=0.0, round_frac=0.0, num_prompts=1, survival=(), mean_nodes=nodes
    )


def test_where_nothing_costs_anything_no_limits_are_tried() -> None:
    tried: list[Limits] = []

    def at(limits: Limits) -> Yield:
        tried.append(limits)
        return fake(limits)

    best_yield(at, lambda nodes, passes: 1.0, NOTHING_BROUGHT)
    assert tried == [NO_LIMITS]


@pytest.mark.parametrize("node_s", [0.01, 0.05, 0.2])
def test_the_limits_of_a_rate_are_those_that_bring_it(node_s: float) -> None:
    # (1 + x) / (1 + v e^x) is largest where e^-x / v = 1 + x: the rate at which a node of probability e^-x just pays
    found = best_yield(fake, lambda nodes, passes: 1 + node_s * nodes, NOTHING_BROUGHT)
    rates = {x / 100: (1 + x / 100) / (1 + node_s * math.exp(x / 100)) for x in range(401)}
    assert found.mean / (1 + node_s * found.mean_nodes) == pytest.approx(max(rates.values()), rel=0.01)


# --- rounds within limits ---


def test_a_tree_within_limits_by_hand() -> None:
    # paths of at least e^-1.5 = .22: .5, .3, .5 x .5; two tokens and the target's own in every round of 60
    within = tree_yield([drafted([0] * 60)], 16, 4, None, Limits(verified=1.5))
    assert within.mean == pytest.approx(3.0)
    assert within.mean_nodes == pytest.approx(3.0, rel=0.03)  # fewer at the end
    # the draft goes on from the root alone: .5, .3, .1, and by the power of the rank some more
    first = tree_yield([drafted([0] * 60)], 3, 4, None, Limits(verified=2.5, expanded=0.0))
    assert first.mean == pytest.approx(2.0)
    assert first.mean_passes == pytest.approx(1.0)
    assert first.mean_nodes == pytest.approx(3.0)
    # from .5 too, which takes a second pass, and brings .25, .15 and .05
    second = tree_yield([drafted([0] * 60)], 16, 4, None, Limits(verified=1.5, expanded=0.75))
    assert second.mean == pytest.approx(3.0)
    assert second.mean_passes == pytest.approx(2.0, rel=0.03)


def test_a_draft_goes_on_beside_a_text_that_has_left_its_path() -> None:
    # the target always takes the second choice, .3; of the paths at .25 and more the draft sees .5, and .5 x .5
    rows = DraftRows.of([drafted([1] * 60)], None)
    assert rows.count_passes(4, 1.5)[:50].tolist() == pytest.approx([3.0] * 50, abs=0.1)
    assert rows.count_passes(2, 1.5)[:50].tolist() == pytest.approx([2.0] * 50)
    assert rows.count_passes(4, -0.25).tolist() == [0.0] * 60


def test_copies_within_limits_by_hand() -> None:
    # after 16 tokens and more .95, once half its odds: .905; half of eight hits learned: (4 + 8) / (4 x .905 + 8)
    copies = Copies.of([alone([16] * 8, [1] * 8)], 1)
    once = 9.5 / 10.5
    assert copies.costs_T[0] == pytest.approx(-math.log(once * 12 / (4 * once + 8)))  # .068
    assert copies.sizes(8, 0.21).lengths_T.tolist() == [3, 3, 3, 3, 3, 2, 1, 0]  # the last token is the target's
    # what branches off is worth less than e^-2; of .21 nothing is left for it, of 3.0 at the root .55 of a node
    assert copies.sizes(8, 0.21).nodes_T[0] == 3.0
    assert copies.sizes(1, 3.0).nodes_T[0] == pytest.approx(1.55)


def test_a_sure_copy_leaves_the_draft_nothing_to_do() -> None:
    text, copied = drafted([9] * 60), alone([16] * 60, [1] * 60)
    sure = hybrid_yield([text], [copied], 32, 4, 1, None, Limits(verified=3.0, expanded=2.0))
    assert sure.mean_passes == 0.0
    assert sure.mean > 8
    unsure = hybrid_yield([text], [alone([1] * 60, [0] * 60)], 32, 4, 1, None, Limits(verified=3.0, expanded=2.0))
    assert unsure.mean_passes > 1


@pytest.mark.parametrize("seed", range(4))
def test_narrower_limits_never_make_rounds_larger_and_no_round_outgrows_its_plan(seed: int) -> None:
    text, copied = drawn_texts(seed)
    rows = DraftRows.of([text], None).with_copies(Copies.of([copied], 1))
    costs = [0.25, 0.75, 1.5, 2.5, 4.0]
    nodes = [rows.count_within(Limits(verified=cost), 6).within(24) for cost in costs]
    passes = [rows.count_passes(6, cost) for cost in costs]
    for fewer, more in pairwise(nodes):
        assert (fewer <= more + 1e-9).all()
    for fewer, more in pairwise(passes):
        assert (fewer <= more + 1e-9).all()
    for cost in costs:
        limits = Limits(verified=cost, expanded=cost)
        for found in (
            tree_yield([text], 24, 6, None, limits),
            sampled_tree_yield([text], 24, 6, None, limits),
            hybrid_yield([text], [copied], 24, 6, 1, None, limits),
            copies_yield([copied], 24, 24, 1, limits),
        ):
            assert 0 <= found.mean_nodes <= 24 + 1e-9
            assert 0 <= found.mean_passes <= 6 + 1e-9


def test_without_limits_rounds_are_as_large_as_planned() -> None:
    text, copied = drawn_texts(5)
    for found in (tree_yield([text], 24, 6, None), hybrid_yield([text], [copied], 24, 6, 1, None)):
        assert (found.mean_nodes, found.mean_passes) == (24, 6)
    assert copies_yield([alone([4] * 40, [1] * 40)], 8, 8, 1).mean_nodes == pytest.approx(8.0)


def test_nodes_that_are_not_known_are_counted_up_to_the_planned_size() -> None:
    counts = NodeCounts(np.array([4.0, 4.0, 40.0]), np.array([0.0, 10.0, 10.0]))
    assert counts.within(1000) == pytest.approx([4.0, 14.0, 50.0])
    few = counts.within(12)
    assert few[0] == 4.0
    assert 9.5 < few[1] < 12.0
    assert few[2] == 12.0
