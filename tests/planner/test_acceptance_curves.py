"""Acceptance as curves: replayed by hand, equal to what plans are made of, and refused where nothing was recorded."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import DRAFT, profile

from planner.acceptance import bootstrap_over_prompts, chain_yield
from planner.acceptance_curves import (
    by_domain,
    draft_calibration,
    growth_curves,
    length_curves,
    match_groups,
    rank_curves,
    recorded,
    recorded_drafts,
    survival_curves,
)
from planner.contracts.errors import BadInputError
from planner.contracts.profile import AcceptanceRecording, Profile
from planner.copies import copies_yield
from planner.drafting import chain, tree
from planner.shares import wilson_share
from planner.yields import Yields

SPLIT = (0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0)


def ranked(*ranks: int, domain: str = "code") -> AcceptanceRecording:
    """A text whose first token comes from the prefill: of its rank no round depends."""
    return AcceptanceRecording(domain=domain, prompt_tokens=1, fingerprint=DRAFT.fingerprint, ranks=(0, *ranks))


def matched(lengths: tuple[int, ...], hits: tuple[int, ...], shares: tuple[float, ...] = ()) -> AcceptanceRecording:
    return AcceptanceRecording(
        domain="code", prompt_tokens=1, match_lengths=lengths, match_hits=hits, match_shares=shares
    )


def with_probs(ranks: list[int], domain: str = "code") -> AcceptanceRecording:
    """A draft that gives .5 .3 .1 everywhere."""
    return AcceptanceRecording(
        domain=domain,
        prompt_tokens=1,
        fingerprint=DRAFT.fingerprint,
        ranks=tuple(ranks),
        draft_probs=tuple(SPLIT[rank] if rank < 8 else 0.0 for rank in ranks),
        top_probs=tuple(itertools.chain.from_iterable([SPLIT] * len(ranks))),
    )


# Rounds of two drafted tokens: 2 accepted, then the last token; and 0, 0, 1.
TWO_PROMPTS = (ranked(0, 0, 1, 0), ranked(1, 1, 0, 0))


# --- survival and lengths ---


def test_survival_is_counted_over_the_rounds_of_all_prompts() -> None:
    # of 5 rounds the first of each kind accepts 2, the last 1: S_1 = 2/5, S_2 = 1/5
    (curve,) = survival_curves(TWO_PROMPTS, 2, seed=0)
    assert (curve.domain, curve.num_prompts, curve.num_tokens) == ("code", 2, 10)
    assert curve.steps == (1, 2)
    assert curve.values == pytest.approx((0.4, 0.2))


def test_another_draft_length_yields_one_token_and_the_survivals() -> None:
    (curve,) = length_curves(TWO_PROMPTS, (1, 2), seed=0)
    # one drafted token: 1 0 | 0, 1, 0 + the last one; 4 of 6 rounds... by chain_yield, and by hand for two: 8/5
    assert curve.steps == (1, 2)
    assert curve.values == pytest.approx((chain_yield(TWO_PROMPTS, 1).mean, 1.6))


def test_a_curves_interval_is_the_bootstrap_that_plans_know() -> None:
    (curve,) = length_curves(TWO_PROMPTS, (2,), seed=7)
    assert curve.lows is not None
    assert curve.highs is not None
    assert (curve.lows[0], curve.highs[0]) == bootstrap_over_prompts(TWO_PROMPTS, 2, seed=7)
    assert curve == length_curves(TWO_PROMPTS, (2,), seed=7)[0]


def test_one_prompt_has_no_interval() -> None:
    (curve,) = survival_curves(TWO_PROMPTS[:1], 2, seed=0)
    assert curve.lows is None
    assert curve.highs is None
    (of_lengths,) = length_curves(TWO_PROMPTS[:1], (1, 2), seed=0)
    assert of_lengths.lows is None


def test_each_kind_of_text_has_a_curve_and_all_together_one_more() -> None:
    prose = ranked(0, 0, 0, 0, domain="prose")
    curves = survival_curves((*TWO_PROMPTS, prose), 2, seed=0)
    assert [curve.domain for curve in curves] == ["code", "prose", None]
    # prose: 4 tokens to its end: 2 accepted of 2, then the last token: 2 rounds; all: 7 rounds, 3 of which accept any
    assert curves[1].values == pytest.approx((0.5, 0.5))
    assert curves[2].values == pytest.approx((3 / 7, 2 / 7))
    assert [domain for domain, _ in by_domain(TWO_PROMPTS)] == ["code"]


def test_texts_alone_are_replayed_as_copies() -> None:
    texts = (matched((0, 3, 4, 5, 0), (0, 1, 1, 0, 0)), matched((0, 0, 2, 3, 1), (0, 0, 1, 1, 1)))
    (curve,) = length_curves(texts, (1, 4), seed=0)
    assert curve.values == pytest.approx([copies_yield(texts, length, length, 1).mean for length in (1, 4)])


def test_nothing_recorded_is_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="no recorded acceptance of this draft"):
        recorded(profile(), "another")
    with pytest.raises(BadInputError, match="no recorded acceptance of the texts"):
        recorded(profile(acceptance=()), None)
    with pytest.raises(BadInputError, match="of this draft, domain prose"):
        recorded(profile(), DRAFT.fingerprint, "prose")
    with pytest.raises(BadInputError, match="no acceptance to replay"):
        survival_curves((ranked(),), 2, seed=0)


def test_drafts_with_recordings_are_found_by_name() -> None:
    assert recorded_drafts(profile()) == {"draft": DRAFT.fingerprint}
    with pytest.raises(BadInputError, match="of any draft"):
        recorded_drafts(profile(acceptance=()))
    assert len(recorded(profile(), DRAFT.fingerprint)) == 1


# --- ranks ---


def test_rank_shares_count_every_position_of_every_text() -> None:
    # first choices: 4 of 5 and 3 of 5; within the first two all
    (curve,) = rank_curves(TWO_PROMPTS, 3, seed=0)
    assert curve.steps == (1, 2, 3)
    assert curve.values == pytest.approx((0.7, 1.0, 1.0))


def test_rank_shares_add_up_what_the_calibration_says_of_each_choice() -> None:
    entry = with_probs(([0] * 7 + [1] * 2 + [9]) * 100)
    (curve,) = rank_curves([entry], 8, seed=0)
    found = Yields(with_recordings([entry]), None, is_sampled=False).calibration(DRAFT.fingerprint)
    assert found is not None
    assert curve.values == pytest.approx(list(itertools.accumulate(found.by_rank_frac)))


def test_ranks_without_a_draft_are_refused() -> None:
    with pytest.raises(BadInputError, match="no acceptance to replay"):
        rank_curves([matched((1, 1), (1, 1))], 4, seed=0)


# --- matches ---


def test_matches_are_counted_by_length_and_by_how_earlier_ones_went_on() -> None:
    groups = match_groups(with_recordings([matched((0, 1, 1, 20, 7), (0, 1, 0, 1, 1), (0.0, 1.0, 0.5, 1.0, 0.75))]))
    said = [(entry.least_tokens, entry.most_tokens, entry.agreement, entry.right.frac) for entry in groups]
    assert said == [(1, 1, "all", 1.0), (1, 1, "few", 0.0), (7, 8, "most", 1.0), (16, None, "all", 1.0)]
    assert [entry.prior_frac for entry in groups] == pytest.approx([0.25, 0.25, 0.78, 0.95])
    assert {entry.right.num_all for entry in groups} == {1}


def test_older_recordings_do_not_say_how_earlier_ones_went_on() -> None:
    groups = match_groups(with_recordings([matched((2, 2, 3), (1, 0, 1))]))
    assert [(entry.least_tokens, entry.agreement, entry.right.frac) for entry in groups] == [
        (2, "unknown", 0.5),
        (3, "unknown", 1.0),
    ]


def test_text_without_any_match_is_refused() -> None:
    with pytest.raises(BadInputError, match="no matches to calibrate"):
        match_groups(with_recordings([matched((0, 0), (0, 0)), ranked(0, 0)]))


# --- probabilities ---


def test_draft_probabilities_stand_beside_how_often_they_were_right() -> None:
    made = with_recordings([with_probs(([0] * 7 + [1] * 2 + [9]) * 100)])
    found = draft_calibration(made, DRAFT.fingerprint)
    assert [point.draft_prob for point in found.points] == pytest.approx([0.1, 0.3, 0.5])
    assert [point.taken.frac for point in found.points] == pytest.approx([0.0, 0.2, 0.7])
    assert {point.taken.num_all for point in found.points} == {1000}
    assert found.curve == Yields(made, None, is_sampled=False).calibration(DRAFT.fingerprint)


def test_few_candidates_have_points_and_no_curve() -> None:
    found = draft_calibration(with_recordings([with_probs([0] * 20)]), DRAFT.fingerprint)
    assert len(found.points) == 3
    assert found.curve is None


def test_probabilities_that_were_not_recorded_are_refused() -> None:
    with pytest.raises(BadInputError, match="no probabilities to calibrate"):
        draft_calibration(profile(), DRAFT.fingerprint)


# --- trees ---


def test_growth_is_what_plans_are_made_of() -> None:
    made = with_recordings([with_probs(([0] * 3 + [1]) * 12), with_probs(([0, 0, 1, 2]) * 12)])
    curves = growth_curves(made, DRAFT.fingerprint)
    yields = Yields(made, None, is_sampled=False)
    assert [(curve.kind, curve.max_depth) for curve in curves] == [
        ("chain", None),
        ("tree", 4),
        ("tree", 8),
        ("tree", 16),
        ("tree", 24),
    ]
    for curve in curves[:3]:
        for nodes, tokens in zip(curve.num_nodes, curve.tokens_per_round, strict=True):
            drafting = chain(nodes) if curve.max_depth is None else tree(nodes, curve.max_depth)
            assert tokens == yields.of(DRAFT.fingerprint, drafting).mean
    assert list(curves[1].tokens_per_round) == sorted(curves[1].tokens_per_round)


def test_growth_without_probabilities_is_refused() -> None:
    with pytest.raises(BadInputError, match="replay trees"):
        growth_curves(profile(), DRAFT.fingerprint)


# --- shares ---


def test_wilsons_interval_of_eight_in_ten() -> None:
    # z = 1.2816: middle (.8 + .08212) / 1.16424 = .75768, half 1.2816 sqrt(.016 + .00411) / 1.16424 = .15609
    share = wilson_share(8, 10)
    assert (share.frac, share.num_all) == (0.8, 10)
    assert (share.low_frac, share.high_frac) == pytest.approx((0.60159, 0.91377), abs=2e-5)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilsons_interval_holds_the_share_within_nought_and_one(counted: tuple[int, int]) -> None:
    share = wilson_share(*counted)
    assert 0 <= share.low_frac <= share.frac <= share.high_frac <= 1


def with_recordings(entries: list[AcceptanceRecording]) -> Profile:
    return profile(acceptance=tuple(entries))
