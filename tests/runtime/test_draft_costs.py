"""Round costs looked up, the rate of a run by them, and how many candidates pay, against hand-computed numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.contracts.plan import RoundCosts
from runtime.draft.costs import Costs, Rate, best_size

# Tiles of 16: the 17th and the 33rd token verified cost a step of .4 s.
STEPS = RoundCosts(num_verified=(1, 16, 17, 32, 33), round_s=(1.0, 1.0, 1.4, 1.4, 1.8), hidden_s=(0.0,) * 5)


def linear(seconds_per_token: float, *, hidden_s: float = 0.0) -> Costs:
    """One second for the context's last token, and so much for each other."""
    return Costs(
        RoundCosts(
            num_verified=(1, 101),
            round_s=(1.0, 1.0 + 100 * seconds_per_token),
            hidden_s=(hidden_s, hidden_s),
            pass_nodes=(1, 5),
            draft_pass_s=(0.1, 0.5),
        )
    )


def at_rate(costs: Costs, tokens_per_s: float) -> Rate:
    """The rate of a run that has gone on at this speed for long."""
    rate = Rate(costs)
    for _ in range(10_000):
        rate.observe(1, 1 / tokens_per_s)
    return rate


def test_rounds_lie_on_lines_between_entries_and_on_the_last_line_beyond() -> None:
    costs = Costs(RoundCosts(num_verified=(2, 4, 8), round_s=(1.0, 1.2, 2.0), hidden_s=(0.0, 0.2, 0.6)))
    assert [costs.verify_s(tokens) for tokens in (1, 2, 3, 4, 6, 8, 10)] == pytest.approx(
        [1.0, 1.0, 1.1, 1.2, 1.6, 2.0, 2.4]
    )
    assert costs.hidden_s(3) == pytest.approx(0.1)
    assert costs.marginal_verify_s(3) == pytest.approx(0.1)
    assert costs.marginal_verify_s(4) == pytest.approx(0.2)
    assert costs.least_marginal_s(7) == 0.0  # from 1 to 2


def test_a_last_line_that_falls_is_noise_and_does_not_go_on() -> None:
    costs = Costs(RoundCosts(num_verified=(1, 2), round_s=(1.0, 0.9), hidden_s=(0.0, 0.0)))
    assert costs.verify_s(50) == pytest.approx(0.9)


def test_only_drafting_that_is_not_hidden_makes_a_round_longer() -> None:
    costs = linear(0.01, hidden_s=0.3)
    assert costs.round_s(11) == pytest.approx(1.1)
    assert costs.round_s(11, 0.25) == pytest.approx(1.1)
    assert costs.round_s(11, 0.5) == pytest.approx(1.3)
    assert costs.draft_pass_s(3) == pytest.approx(0.3)


def test_where_a_plan_has_no_costs_all_is_free_and_every_budget_is_filled() -> None:
    for costs in (Costs.free(), Costs.of(None)):
        rate = Rate(costs)
        rate.observe(3, costs.round_s(200))
        assert (costs.round_s(200), costs.draft_pass_s(9), rate.tokens_per_s) == (0.0, 0.0, 0.0)
        assert best_size([0.5, 1e-3, 1e-9], costs, rate) == 3


def test_rate_starts_without_drafts_and_follows_rounds_not_seconds() -> None:
    costs = linear(0.01)
    rate = Rate(costs)
    assert rate.tokens_per_s == 1.0
    rate.observe(10, 1.9)
    assert rate.tokens_per_s == pytest.approx((8 * 1 + 10) / (8 * 1 + 1.9))  # the start counts for 8 rounds
    for _ in range(5000):
        rate.observe(3, 2.0)
    assert rate.tokens_per_s == pytest.approx(1.5)
    for _ in range(200):  # the time constant: 1 - 1/e of the way from 1.5 to 4
        rate.observe(4, 1.0)
    assert 2.5 < rate.tokens_per_s < 3.5
    assert rate.tokens_per_s == pytest.approx((4 - 1 * 0.367) / (1 + 1 * 0.367), rel=0.01)


def test_one_more_token_is_taken_while_its_chance_is_worth_its_time() -> None:
    costs = linear(0.1)
    probs = [0.8, 0.5, 0.31, 0.29, 0.1]
    assert best_size(probs, costs, at_rate(costs, 3.0)) == 3  # 3 tokens/s * .1 s = .3
    assert best_size(probs, costs, at_rate(costs, 6.0)) == 1
    assert best_size(probs, costs, at_rate(costs, 9.0)) == 0
    assert best_size([], costs, at_rate(costs, 1.0)) == 0


def test_a_step_is_taken_where_all_behind_it_are_worth_it_together() -> None:
    costs = Costs(STEPS)
    rate = at_rate(costs, 2.0)  # a step costs .8 tokens
    assert best_size([0.04] * 40, costs, rate) == 15  # 16 more are worth .64: not the step
    assert best_size([0.06] * 40, costs, rate) == 31  # 16 more are worth .96
    assert best_size([0.06] * 20, costs, rate) == 15  # 5 more are worth .3


@given(
    st.lists(st.floats(0, 1), max_size=12),
    st.lists(st.floats(0, 0.5), min_size=12, max_size=12),
    st.floats(0.1, 10),
)
def test_no_other_size_gains_more(probs: list[float], steps_s: list[float], tokens_per_s: float) -> None:
    probs.sort(reverse=True)
    round_s = tuple(itertools.accumulate(steps_s, initial=1.0))
    costs = Costs(RoundCosts(num_verified=tuple(range(1, 14)), round_s=round_s, hidden_s=(0.0,) * 13))
    rate = at_rate(costs, tokens_per_s)

    def gain(size: int) -> float:
        return sum(probs[:size]) - rate.tokens_per_s * (round_s[size] - round_s[0])

    best = best_size(probs, costs, rate)
    assert gain(best) >= max(gain(size) for size in range(len(probs) + 1)) - 1e-12
