"""How far a prediction may be off: what logged runs make of the priors, and what a draw of performances must keep."""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_compare import PREDICTED, performance, plan, report

from planner.contracts.performance import Performance
from planner.contracts.plan import Workload
from planner.contracts.report import Report
from planner.scoring import num_rounds
from planner.terms import RoundTerms, rounds_of
from planner.uncertainty import (
    COMPONENTS,
    Expected,
    ModelError,
    Outlook,
    calibrated,
    component_of,
    outlook,
    outlooks,
    performances,
)

START = ModelError(frac={"link": 0.1, "compute": 0.1, "draft": 0.1, "host": 0.1, "tokens": 0.1, "ttft": 0.1})
CERTAIN = ModelError(frac=dict.fromkeys(COMPONENTS, 0.0))
WORKLOAD = Workload(prompt_tokens=100, new_tokens=101)
# Two layers of 20 ms that travel in 50 ms each: the link binds, 0.1 s a round
TERMS = RoundTerms(
    is_streamed_U=np.array([True, True]),
    compute_s_U=np.array([0.02, 0.02]),
    copy_s_U=np.array([0.05, 0.05]),
    read_s_U=np.zeros(2),
    num_slots=2,
    num_staging_buffers=0,
    draft_s=0.02,
    host_s=0.01,
    tokens_per_round=2.5,
    max_depth=4,
)


def drawn(
    terms: RoundTerms = TERMS,
    error: ModelError = START,
    *,
    run_frac: float = 0.0,
    round_frac: float = 0.5,
    first_draft_s: float = 0.0,
) -> Outlook:
    plan = Expected(terms=terms, run_frac=run_frac, round_frac=round_frac, first_draft_s=first_draft_s, ttft_s=0.5)
    return outlook(plan, WORKLOAD, error)


def slower_link(ratio: float) -> Report:
    assert PREDICTED.link is not None
    return report(performance(link_s=PREDICTED.link.busy_s * ratio))


def width_frac(draws: np.ndarray) -> float:
    low, middle, high = np.percentile(draws, (10, 50, 90))
    return float((high - low) / middle)


# --- calibrated ---


def test_no_report_leaves_the_prior() -> None:
    assert calibrated(START, []) == START


def test_calibrating_leaves_the_start_as_it_was() -> None:
    start = replace(START, frac=dict(START.frac))
    calibrated(start, [slower_link(2.0)] * 5)
    assert start == START


def test_runs_correct_by_their_median_ratio() -> None:
    # Ratios 1, 1.1, 1.2, 1.2, 3: the median is 1.2, and one run gone astray does not move it; 5 of 6 parts count
    error = calibrated(START, [slower_link(ratio) for ratio in (1.2, 3.0, 1.0, 1.1, 1.2)])
    assert error.num_runs == 5
    assert error.factor["link"] == pytest.approx(1.2 ** (5 / 6))
    assert error.factor["tokens"] == error.factor["compute"] == error.factor["ttft"] == 1.0


def test_one_run_corrects_by_half_and_narrows_nothing() -> None:
    error = calibrated(START, [slower_link(1.2)])
    assert error.factor["link"] == pytest.approx(1.2**0.5)
    assert error.frac["link"] == pytest.approx(0.1)


def test_spread_of_runs_joins_the_priors() -> None:
    # ln ratios -0.2, -0.2, 0, 0.2, 0.2: squares of 0.16 beside five of the prior's 0.01 each, over 5 + 5 - 1
    error = calibrated(START, [slower_link(math.exp(log)) for log in (-0.2, 0.2, 0.0, -0.2, 0.2)])
    assert error.factor["link"] == pytest.approx(1.0)
    assert error.frac["link"] == pytest.approx(math.sqrt((0.05 + 0.16) / 9))


def test_runs_that_agree_narrow_the_interval_but_never_close_it() -> None:
    error = calibrated(START, [slower_link(1.0)] * 20)
    assert error.frac["link"] == pytest.approx(0.1 * math.sqrt(5 / 24))


def test_reports_of_a_calibrated_plan_keep_its_correction() -> None:
    logged = slower_link(1.0)
    corrected = logged.model_copy(update={"plan": logged.plan.model_copy(update={"calibration": {"link": 1.3}})})
    assert calibrated(START, [corrected] * 9).factor["link"] == pytest.approx(1.3**0.9)


def test_component_that_no_run_measured_keeps_its_prior() -> None:
    error = calibrated(START, [report(Performance(ttft_s=1.0))] * 5)  # predicted 0.5 s
    assert error.factor["ttft"] == pytest.approx(2.0 ** (5 / 6))
    for name in ("link", "compute", "draft", "host", "tokens"):
        assert error.factor[name] == 1.0
        assert error.frac[name] == START.frac[name]


def test_component_that_was_predicted_as_nothing_keeps_its_prior() -> None:
    error = calibrated(START, [report(performance(), plan(performance(draft_s=0.0)))] * 5)
    assert (error.factor["draft"], error.frac["draft"]) == (1.0, 0.1)


def test_unexplained_time_counts_as_the_hosts() -> None:
    assert component_of(performance(host_s=0.01, unexplained_s=0.004), "host") == pytest.approx(0.014)


# --- outlook ---


def test_first_draw_is_the_prediction_without_error() -> None:
    # Rounds of 0.1 s; 100 tokens after the first in (100 + (2.5 * 1.25 - 1) / 2) / 2.5 = 40.425 rounds
    found = drawn()
    rounds = num_rounds(WORKLOAD, 2.5, 0.5)
    assert rounds == pytest.approx(40.425)
    assert found.round_s[0] == rounds_of([TERMS])[0] == pytest.approx(0.1)
    assert found.tokens_per_s[0] == pytest.approx(100 / 4.0425)
    assert found.tokens_per_round[0] == pytest.approx(100 / 40.425)
    assert (found.link_s[0], found.compute_s[0], found.draft_s[0]) == pytest.approx((0.1, 0.04, 0.02))
    assert (found.host_s[0], found.ttft_s[0]) == (0.01, 0.5)


def test_reading_the_prompt_with_the_draft_is_spread_over_the_rounds() -> None:
    found = drawn(first_draft_s=0.8085)  # 0.8085 / 40.425 = 0.02 s a round
    assert found.round_s[0] == pytest.approx(0.12)
    assert found.draft_s[0] == pytest.approx(0.04)
    assert found.tokens_per_s[0] == pytest.approx(100 / (4.0425 + 0.8085))


def test_speed_is_tokens_per_round_over_the_round_in_every_draw() -> None:
    found = drawn(first_draft_s=0.8085)
    np.testing.assert_allclose(found.tokens_per_s, found.tokens_per_round / found.round_s)


def test_certain_prediction_has_no_width() -> None:
    found = drawn(error=CERTAIN)
    assert np.ptp(found.tokens_per_s) == 0.0
    assert found.tokens_per_s[0] == drawn().tokens_per_s[0]


@pytest.mark.parametrize(
    "name", ["round_s", "link_s", "compute_s", "draft_s", "host_s", "tokens_per_round", "tokens_per_s", "ttft_s"]
)
def test_interval_holds_the_prediction_and_widens_with_the_error(name: str) -> None:
    narrow = getattr(drawn(), name)
    wide = getattr(drawn(error=ModelError(frac=dict.fromkeys(COMPONENTS, 0.2))), name)
    for draws in (narrow, wide):
        low, high = np.percentile(draws, (10, 90))
        assert low < draws[0] < high
    assert width_frac(wide) > 1.5 * width_frac(narrow)


def test_width_of_one_component_is_that_of_its_error() -> None:
    # A lognormal with a spread of 0.1 has its P10 and P90 at exp(-+1.2816 * 0.1), so 0.257 apart; 256 draws scatter
    assert width_frac(drawn().ttft_s) == pytest.approx(0.257, rel=0.2)


def test_few_prompts_widen_the_tokens_alone() -> None:
    certain, guessed = drawn(error=CERTAIN), drawn(error=CERTAIN, run_frac=0.1)
    assert width_frac(guessed.tokens_per_round) > 0.2
    np.testing.assert_array_equal(certain.round_s, guessed.round_s)


def test_compute_that_hides_under_the_link_moves_nothing() -> None:
    # 0.04 s of compute and 0.03 s of draft and host beside 0.1 s of the link
    error = replace(CERTAIN, frac={**CERTAIN.frac, "compute": 0.05})
    assert np.ptp(drawn(error=error).tokens_per_s) == pytest.approx(0.0, abs=1e-9)


def test_plan_without_a_draft_emits_exactly_one_token_per_round() -> None:
    terms = replace(TERMS, tokens_per_round=1.0, draft_s=0.0, max_depth=0)
    found = drawn(terms, run_frac=0.3, round_frac=0.0)
    assert set(found.tokens_per_round) == {1.0}


def test_round_never_emits_less_than_a_token() -> None:
    error = ModelError(frac=dict.fromkeys(COMPONENTS, 1.0))
    terms = replace(TERMS, tokens_per_round=1.1)
    found = drawn(terms, error, round_frac=0.0)
    assert found.tokens_per_round.min() == 1.0


def test_plans_drawn_together_are_drawn_as_alone() -> None:
    several = [
        Expected(terms=terms, run_frac=0.1, round_frac=0.5, first_draft_s=0.1, ttft_s=0.5)
        for terms in (TERMS, replace(TERMS, draft_s=0.09, tokens_per_round=3.0), replace(TERMS, num_slots=1))
    ]
    for together, expected in zip(outlooks(several, WORKLOAD, START), several, strict=True):
        alone = outlook(expected, WORKLOAD, START)
        np.testing.assert_allclose(together.tokens_per_s, alone.tokens_per_s, rtol=1e-12)


def test_same_draws_again() -> None:
    np.testing.assert_array_equal(drawn().tokens_per_s, drawn().tokens_per_s)


# --- performances ---


def test_performances_are_the_first_draw_and_its_quantiles() -> None:
    found = drawn()
    memory = Performance(device_bytes=7, streamed_bytes_per_pass=1000)
    middle, low, high = performances(found, WORKLOAD, memory, (0.9, 0.6))
    assert middle.generated_tokens_per_s == found.tokens_per_s[0]
    assert middle.survival == (0.9, 0.6)
    assert low.generated_tokens_per_s == np.percentile(found.tokens_per_s, 10)
    assert high.ttft_s == np.percentile(found.ttft_s, 90)
    assert {each.device_bytes for each in (middle, low, high)} == {7}
    assert middle.round is not None
    assert middle.round.waiting_for_weights_s == pytest.approx(0.03)  # 0.1 - 0.04 - 0.02 - 0.01


def test_plan_that_streams_nothing_has_no_link() -> None:
    terms = replace(TERMS, is_streamed_U=np.zeros(2, dtype=np.bool_), copy_s_U=np.zeros(2), num_slots=0)
    middle, low, high = performances(drawn(terms), WORKLOAD, Performance(), ())
    assert middle.link is None
    assert low.link is None
    assert high.link is None


@pytest.mark.parametrize("name", ["prompt_tokens_per_s", "tpot_s", "bytes_per_s"])
def test_each_end_of_an_interval_is_its_fields_own_quantile(name: str) -> None:
    _, low, high = performances(drawn(), WORKLOAD, Performance(streamed_bytes_per_pass=1000), ())
    ends = [getattr(each.link if name == "bytes_per_s" else each, name) for each in (low, high)]
    assert ends[0] < ends[1]


def test_what_only_rounding_leaves_of_a_round_is_no_waiting() -> None:
    # all on the device: compute of .1 s, draft of .2 s; .1 + .2 is not .3 in floating point
    resident = replace(
        TERMS, is_streamed_U=np.array([False, False]), compute_s_U=np.array([0.1, 0.0]), copy_s_U=np.zeros(2)
    )
    found = drawn(replace(resident, draft_s=0.2, host_s=0.0), CERTAIN)
    longer = replace(found, round_s=found.compute_s + found.draft_s + found.host_s + 1e-16)
    for performance_of in performances(longer, WORKLOAD, Performance(), ()):
        assert performance_of.round is not None
        assert performance_of.round.waiting_for_weights_s == 0.0
