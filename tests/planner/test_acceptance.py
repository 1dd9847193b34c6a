"""Replays by hand, against a literal decode loop, and against what others published."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.acceptance import (
    ASSUMED_BETWEEN_FRAC,
    Yield,
    bootstrap_over_prompts,
    chain_yield,
    curve_yield,
    expected_counts,
    geometric_mle,
    geometric_tokens_per_round,
    pooled_share,
    replay,
    replay_ngram,
    sampled_yield,
)
from planner.contracts.errors import BadInputError
from planner.contracts.profile import AcceptanceCurve, AcceptanceRecording
from planner.copies import copies_yield
from planner.schedule import Schedule, Step, round_time_s

# vLLM pull request 26498, drafts of 10, MT-Bench: share of rounds with at least i accepted; mean length 3.64
VLLM_SURVIVAL = (0.74, 0.54, 0.41, 0.30, 0.22, 0.16, 0.12, 0.08, 0.05, 0.02)

# --- replay ---


def test_a_replay_by_hand() -> None:
    # 0 0 3 | 0 0 0 0 | 5 | 0 .: the first round accepts two and is corrected at the third; the second drafts three,
    # accepts all, and the target adds the fourth; the third misses at once; two tokens are left, so one is drafted
    ranks = [0, 0, 3, 0, 0, 0, 0, 5, 0, 0]
    assert replay(ranks, 3) == (2, 3, 0, 1)


def test_the_last_token_is_never_drafted() -> None:
    assert replay([0], 4) == (0,)
    assert replay([0, 0], 4) == (1,)
    assert replay([0, 0, 0], 4) == (2,)
    assert replay([], 4) == ()


def decode_literally(ranks: list[int], draft_len: int) -> tuple[int, ...]:
    """The runtime's loop: `num_left` counts down, the target's token comes after the accepted ones."""
    accepted = []
    num_left, position = len(ranks), 0
    while num_left > 0:
        drafted = ranks[position : position + min(draft_len, num_left - 1)]
        misses = [index for index, rank in enumerate(drafted) if rank != 0]
        num_accepted = misses[0] if misses else len(drafted)
        accepted.append(num_accepted)
        num_left -= num_accepted + 1
        position += num_accepted + 1
    return tuple(accepted)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 9))
def test_a_replay_is_what_the_loop_does_and_emits_every_token(ranks: list[int], draft_len: int) -> None:
    accepted = replay(ranks, draft_len)
    assert accepted == decode_literally(ranks, draft_len)
    assert sum(accepted) + len(accepted) == len(ranks)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(1, 6))
def test_overlaps_of_zero_and_one_replay_greedily(ranks: list[int], draft_len: int) -> None:
    counts = expected_counts([1.0 - rank for rank in ranks], draft_len)
    accepted = np.array(replay(ranks, draft_len))
    assert counts.tolist() == [(accepted >= i).sum() for i in range(draft_len + 1)]


def test_expected_rounds_by_hand() -> None:
    # three tokens, drafts of one, overlaps .5 .5: a round at 0 (always). It is accepted with .5 and covers two tokens,
    # so that the next starts at 2, where nothing is drafted; else at 1, where one is, accepted with .5
    # rounds: 1 at 0, .5 at 1, at 2: .5 (after an accepted first) + .25 (after a rejected second) = .75
    assert expected_counts([0.5, 0.5, 0.9], 1).tolist() == [2.25, 0.5 + 0.25]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 2**32))
def test_expected_counts_are_the_mean_of_drawn_runs(overlaps: list[float], draft_len: int, seed: int) -> None:
    source = random.Random(seed)
    num_runs = 2000
    totals = np.zeros(draft_len + 1)
    for _ in range(num_runs):
        drawn = [0 if source.random() < overlap else 1 for overlap in overlaps]
        totals += (np.array(replay(drawn, draft_len))[:, None] >= np.arange(draft_len + 1)).sum(axis=0)
    # rounds of one run vary by less than 2, their mean by less than .045; five of that
    assert expected_counts(overlaps, draft_len) == pytest.approx(totals / num_runs, abs=0.225)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 8))
def test_expected_rounds_and_accepted_tokens_are_the_text(overlaps: list[float], draft_len: int) -> None:
    assert expected_counts(overlaps, draft_len).sum() == pytest.approx(len(overlaps))


def test_an_ngram_replay_by_hand() -> None:
    # at 0 the match is too short: a plain pass; at 1 two hits, then a miss: 2 accepted, next start at 4; there the
    # drafts are wrong at once; at 5 one token is left after clipping, none to draft: proposed, nothing accepted
    lengths, hits = [1, 2, 3, 4, 2, 2], [1, 1, 1, 0, 0, 1]
    assert replay_ngram(lengths, hits, draft_len=4, min_match_tokens=2) == (None, 2, 0, 0)


# --- yields ---


def recording(*ranks: int) -> AcceptanceRecording:
    """A text whose first token comes from the prefill."""
    return AcceptanceRecording(domain="code", prompt_tokens=1, fingerprint="d", ranks=(7, *ranks))


def test_the_yield_is_the_ratio_of_totals_not_the_mean_of_ratios() -> None:
    # drafts of one. First text: 0 0 | -> rounds (1), (1): 4 tokens in 2; second: 1 1 1 1: 4 tokens in 4
    result = chain_yield([recording(0, 0, 0, 0), recording(1, 1, 1, 1)], 1)
    assert result.mean == pytest.approx(8 / 6)  # not (2 + 1) / 2
    assert result.survival == pytest.approx((2 / 6,))
    assert result.num_prompts == 2


def test_spreads_between_and_within_prompts_by_hand() -> None:
    # within each text all rounds are alike: no variance of a round. Between: rounds 2 and 4, tokens per round 2 and 1,
    # mean 4/3: (2 x (2/3)^2 + 4 x (1/3)^2) / (2 - 1) = 4/3, over (6 - (4 + 16)/6) / 1 = 8/3 rounds: variance 1/2
    result = chain_yield([recording(0, 0, 0, 0), recording(1, 1, 1, 1)], 1)
    assert result.round_frac == 0.0
    assert result.between_frac == pytest.approx(math.sqrt(1 / 2) / (4 / 3))


def test_prompts_that_differ_only_by_chance_show_no_spread_between_them() -> None:
    source = random.Random(5)
    texts = [recording(*(int(source.random() > 0.7) for _ in range(200))) for _ in range(40)]
    result = chain_yield(texts, 4)
    assert result.between_frac < 0.05
    # A is geometric with a = .7 capped at 4: E = 2.77; E[A^2] = sum (2i - 1) .7^i = .7 + 1.47 + 1.715 + 1.681 = 5.566
    assert result.mean == pytest.approx(2.77, rel=0.03)
    assert result.round_frac == pytest.approx(math.sqrt(5.566 - 1.7731**2) / 2.7731, rel=0.05)


def test_prompts_of_different_difficulty_show_the_spread_between_them() -> None:
    source = random.Random(6)
    hazards = [0.5, 0.9] * 100
    texts = [recording(*(int(source.random() > hazard) for _ in range(400))) for hazard in hazards]
    # drafts of one: E = 1.5 and 1.9 up to the sparser starts; half the distance, .2, over about 1.68
    assert chain_yield(texts, 1).between_frac == pytest.approx(0.2 / 1.68, rel=0.15)


def test_a_single_prompt_has_an_assumed_spread() -> None:
    result = chain_yield([recording(0, 0, 0, 0, 1, 0)], 1)
    assert result.between_frac == ASSUMED_BETWEEN_FRAC


def test_recordings_of_another_kind_are_passed_over_and_none_at_all_is_refused() -> None:
    of_text = AcceptanceRecording(domain="code", prompt_tokens=1, match_lengths=(0, 3, 4), match_hits=(0, 1, 0))
    assert chain_yield([of_text, recording(0, 0)], 2).num_prompts == 1
    with pytest.raises(BadInputError, match="no recording of the profile holds ranks of a draft"):
        chain_yield([of_text], 2)
    with pytest.raises(BadInputError, match="overlaps"):
        sampled_yield([of_text], 2)
    with pytest.raises(BadInputError, match="matches"):
        copies_yield([recording(0, 0)], 2, 2, 2)


def test_an_ngram_yield_counts_rounds_without_a_proposal() -> None:
    # from the second token on: match 0: plain; match 3, hit: 1 accepted + 1; none left
    of_text = AcceptanceRecording(domain="code", prompt_tokens=1, match_lengths=(9, 0, 3, 4), match_hits=(1, 0, 1, 1))
    result = copies_yield([of_text], 3, 3, 2)
    assert result.mean == pytest.approx(3 / 2)
    assert result.proposed_frac == 0.5


def test_a_sampled_yield_follows_the_overlaps() -> None:
    text = AcceptanceRecording(domain="code", prompt_tokens=1, overlaps=(0.1, 0.5, 0.5, 0.9))
    assert sampled_yield([text], 1).mean == pytest.approx(3 / 2.25)  # test_expected_rounds_by_hand


def test_the_error_of_a_run_holds_prompt_and_rounds() -> None:
    # between: .1^2 x (1 + 1/4) = .0125; rounds: .6^2 / 100 = .0036
    result = Yield(mean=3.0, between_frac=0.1, round_frac=0.6, num_prompts=4, survival=(0.8,))
    assert result.run_frac(100) == pytest.approx(math.sqrt(0.0161))


def test_bootstrap_draws_prompts_and_is_the_same_for_the_same_seed() -> None:
    texts = [recording(*([hit] * 60)) for hit in (0, 1)] * 8
    low, high = bootstrap_over_prompts(texts, 4, seed=3)
    assert (low, high) == bootstrap_over_prompts(texts, 4, seed=3)
    # half the texts at 5 tokens a round, half at 1: together 10/6; with 5 to 11 of 16 easy, 1.3 to 2.2
    assert 1.2 < low < 10 / 6 < high < 2.4
    same = bootstrap_over_prompts([recording(0, 0, 0, 0)] * 3, 1, seed=0)
    assert same == (2.0, 2.0)


def test_first_choices_are_kept_in_ten_thousandths() -> None:
    top_probs = (0.9123, 0.0512, 0.01, 0.0003, 0.0, 0.0, 0.0, 0.0)
    text = AcceptanceRecording(
        domain="code", prompt_tokens=1, ranks=(0,), top_probs=top_probs, match_lengths=(3,), match_shares=(1 / 3,)
    )
    read = AcceptanceRecording.model_validate_json(text.model_dump_json())
    assert read.top_probs == top_probs
    assert read.match_shares == (0.3333,)
    assert '"9123 512 100 3 0 0 0 0"' in text.model_dump_json()
    assert AcceptanceRecording.model_validate_json('{"domain": "code", "prompt_tokens": 1}').top_probs == ()


def test_first_choices_of_some_positions_only_are_refused() -> None:
    with pytest.raises(ValueError, match="8 of each position"):
        AcceptanceRecording(domain="code", prompt_tokens=1, ranks=(0, 0), top_probs=(0.1,) * 8)


# --- what was published ---


def curve(*survival: float) -> AcceptanceCurve:
    return AcceptanceCurve(target="t", draft="d", domain="code", survival=survival, is_same_pair=True, source="by hand")


def test_a_curve_is_one_and_the_sum_of_its_survival() -> None:
    assert curve_yield(curve(*VLLM_SURVIVAL), 10).mean == pytest.approx(3.64)
    assert curve_yield(curve(*VLLM_SURVIVAL), 2).mean == pytest.approx(1 + 0.74 + 0.54)


def test_beyond_a_curve_the_last_hazard_stays() -> None:
    # .8, .4: hazard .5, so .2 and .1
    result = curve_yield(curve(0.8, 0.4), 4)
    assert result.survival == pytest.approx((0.8, 0.4, 0.2, 0.1))
    assert curve_yield(curve(0.5), 3).survival == pytest.approx((0.5, 0.25, 0.125))
    assert curve_yield(curve(0.5, 0.0), 4).survival == (0.5, 0.0, 0.0, 0.0)
    assert curve_yield(curve(0.0), 3).survival == (0.0, 0.0, 0.0)


def test_the_spread_of_a_round_follows_from_the_curve() -> None:
    # A is 0 with .5, else 1: mean .5, variance .25, of 1.5 tokens
    assert curve_yield(curve(0.5), 1).round_frac == pytest.approx(0.5 / 1.5)
    assert curve_yield(curve(0.5), 1).between_frac == ASSUMED_BETWEEN_FRAC


def test_the_maximum_likelihood_geometric_comes_close_to_vllm_and_the_pooled_share_does_not() -> None:
    # 2.64 / (2.64 + .98) = .729; 2.64 / 10 = .264
    hazard, pooled = geometric_mle(VLLM_SURVIVAL), pooled_share(VLLM_SURVIVAL)
    assert geometric_tokens_per_round(hazard, 10) == pytest.approx(3.58, abs=0.005)
    assert pooled == pytest.approx(0.264)
    assert geometric_tokens_per_round(pooled, 10) == pytest.approx(1.36, abs=0.005)


def test_geometric_tokens_per_round_at_its_ends() -> None:
    assert geometric_tokens_per_round(1.0, 7) == 8
    assert geometric_tokens_per_round(0.0, 7) == 1
    assert geometric_tokens_per_round(0.5, 2) == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("draft_s", "target_s", "tokens_per_round", "tokens_per_s"),
    [(0.206, 1.534, 6.68, 3.81), (0.273, 1.623, 7.65, 4.01), (0.373, 1.781, 7.99, 3.68)],
)
def test_tokens_over_draft_and_target_time_are_specexecs_speeds(
    draft_s: float, target_s: float, tokens_per_round: float, tokens_per_s: float
) -> None:
    # its README, budgets 128, 256, 512; the round is ours: a schedule without streamed units, all compute in one
    target = Step(label="target", is_streamed=False, compute_s=target_s)
    round_s = round_time_s(Schedule(steps=(target,), num_slots=0, boundary_s=draft_s))
    assert tokens_per_round / round_s == pytest.approx(tokens_per_s, rel=0.01)
