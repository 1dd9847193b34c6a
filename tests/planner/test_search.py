"""The search: what it enumerates, that its fast placements are those of the plans, and that its answers are right."""

from dataclasses import replace

import pytest
from made_up import DISK, DRAFT, LINK, MB, NUM_LAYERS, TARGET, layer_s, model, profile, request, spread

from planner import recommend as recommend_module
from planner.acceptance import chain_yield
from planner.budget import Budget, plan_for_budget
from planner.contracts.errors import BadInputError, NoFeasiblePlanError
from planner.contracts.plan import ChainDraft, EmulatedLink, NoDraft
from planner.contracts.profile import AcceptanceCurve
from planner.contracts.quantities import format_s
from planner.drafting import chain
from planner.recommend import recommend
from planner.schedule import round_time_s, schedule_of
from planner.scoring import num_rounds
from planner.search import candidates_of, plan_of, rank, scorer_for
from planner.uncertainty import COMPONENTS, ModelError

TIGHT = 80 * MB  # half of the target's layers


def test_every_draft_length_slot_count_and_prefill_chunk_is_a_candidate() -> None:
    found = candidates_of(TARGET, DRAFT, replace(request(TIGHT), draftings=(chain(1), chain(4)), slot_counts=(2, 3)))
    assert {entry.drafting for entry in found} == {chain(1), chain(4)}
    assert {entry.placement.num_slots for entry in found} == {2, 3}
    assert {entry.prefill_chunk_tokens for entry in found} == {16, 32, 64, 128}  # no longer than the context


def test_a_score_stands_for_the_plan_that_is_made_of_it() -> None:
    asked = request(TIGHT)
    made = profile()
    for score in rank(made, asked).scores[::7]:
        plan, drawn = plan_of(made, asked, score)
        placement = score.candidate.placement
        resident = {unit.index for unit in plan.units if unit.kind == "layer" and unit.placement == "resident"}
        assert resident == placement.residents
        assert plan.slots == placement.num_slots
        assert plan.prefill_chunk_tokens == score.candidate.prefill_chunk_tokens
        assert round_time_s(schedule_of(plan)) == pytest.approx(score.round_s, rel=0.01)  # the first draft is spread
        assert plan.predicted.generated_tokens_per_s == pytest.approx(score.tokens_per_s, rel=1e-9)
        assert drawn.tokens_per_s[0] == plan.predicted.generated_tokens_per_s


def test_no_plan_takes_more_than_its_budget_and_the_next_resident_would() -> None:
    asked = request(TIGHT)
    for score in rank(profile(), asked).scores[::5]:
        plan, _ = plan_of(profile(), asked, score)
        assert plan.memory.device_bytes <= TIGHT < plan.memory.device_bytes * 1.011 + 10 * MB


def test_round_of_a_link_bound_plan_is_its_transfer() -> None:
    # 80 MB hold 2 slots and 5 residents of 10 MB beside a few MB of activations: 11 layers of 10 ms travel.
    baseline = rank(profile(), replace(request(TIGHT), never_speculate=True, slot_counts=(2,))).best
    num_streamed = NUM_LAYERS - len(baseline.candidate.placement.residents)
    assert num_streamed == 11
    assert baseline.round_s == pytest.approx(num_streamed * 10e-3, rel=1e-3)
    assert baseline.tokens_per_s == pytest.approx(1 / baseline.round_s, rel=1e-3)


def test_without_a_draft_model_streamed_layers_compute_as_when_just_copied() -> None:
    warm = [
        row.model_copy(
            update={
                "load_bytes_per_s": 5e9,
                "load_link": "emulated:5GB/s",
                "duration_s": spread(0.7 * row.duration_s.median),
            }
        )
        for row in profile().compute
        if row.unit == "layer"
    ]
    asked = replace(request(TIGHT, link=EmulatedLink(bytes_per_s=5e9)), draftings=(chain(2),))
    ranking = rank(profile(compute=(*profile().compute, *warm)), asked)
    for fingerprint, warm_frac in ((None, 0.7), (DRAFT.fingerprint, 1.0)):
        best = ranking.best_of(fingerprint)
        assert best is not None
        num_residents, terms = len(best.candidate.placement.residents), best.terms
        alone_s = layer_s(1 if fingerprint is None else 3)
        assert 0 < num_residents < NUM_LAYERS
        streamed_s = terms.compute_s_U[terms.is_streamed_U]
        assert list(streamed_s) == pytest.approx([warm_frac * alone_s] * (NUM_LAYERS - num_residents))
        assert terms.compute_s_U.sum() == pytest.approx(streamed_s.sum() + num_residents * alone_s)


def test_tokens_per_second_are_those_of_the_replay() -> None:
    score = rank(profile(), replace(request(TIGHT), draftings=(chain(3),), slot_counts=(2,))).best_of(DRAFT.fingerprint)
    assert score is not None
    tokens = chain_yield(profile().acceptance, 3)
    assert score.terms.tokens_per_round == tokens.mean
    # 3 ms for each drafted token, and as long for the first round's reading of the prompt.
    assert score.terms.draft_s == pytest.approx(9e-3)
    decode_s = num_rounds(request(TIGHT).workload, tokens.mean, tokens.round_frac) * score.round_s + 3e-3
    assert score.tokens_per_s == pytest.approx(63 / decode_s)


def test_what_fits_is_not_streamed() -> None:
    found = recommend(profile(ranks=(1,) * 64), request(400 * MB))
    assert found.answer == "do not stream, it fits"
    assert found.plan.streamed == ()
    assert found.rivals == ()
    # 16 layers of 2 ms and a millisecond of the host
    assert found.choice.round_s == pytest.approx(16 * layer_s(1) + 1e-3)


def test_a_draft_that_never_agrees_is_not_used() -> None:
    found = recommend(profile(ranks=(1,) * 64), request(TIGHT))
    assert found.answer == "do not speculate"
    assert isinstance(found.plan.draft, NoDraft)
    assert found.crossovers[0].first_draft_len is None
    assert found.choice == found.baseline


def test_a_draft_that_often_agrees_is_used_and_the_baseline_gets_its_memory_back() -> None:
    found = recommend(profile(), request(TIGHT))
    assert found.answer == "speculate"
    assert isinstance(found.plan.draft, ChainDraft)
    assert found.baseline.draft is None
    assert found.baseline.num_resident_layers >= found.choice.num_resident_layers
    assert found.crossovers[0].first_draft_len == 1


def test_a_slow_draft_stops_paying_at_some_length() -> None:
    # 40 ms a token against rounds of 110 ms: the runs of three bring at most 4 tokens.
    (crossover,) = recommend(profile(draft_pass_s=40e-3), request(TIGHT)).crossovers
    assert crossover.last_draft_len is not None
    assert crossover.last_draft_len < 16
    gains = {point.draft_len: point.speedup_frac for point in crossover.points}
    assert gains[crossover.last_draft_len] > 1
    assert max(gain for length, gain in gains.items() if length > crossover.last_draft_len) <= 1


def test_a_faster_link_or_more_memory_is_never_slower() -> None:
    def best(link_bytes_per_s: float, device_bytes: int) -> float:
        asked = request(device_bytes, link=EmulatedLink(bytes_per_s=link_bytes_per_s))
        return round(max(score.tokens_per_s for score in rank(profile(), asked).scores), 9)  # but for rounding

    speeds = [best(rate, TIGHT) for rate in (0.2e9, 0.5e9, 1e9, 4e9)]
    assert speeds == sorted(speeds)
    speeds = [best(1e9, size * MB) for size in (40, 60, 100, 150, 400)]
    assert speeds == sorted(speeds)


def test_prices_are_what_more_would_give() -> None:
    found = recommend(profile(ranks=(0, 0, 1, 0, 1) * 12), request(TIGHT))
    prices = {price.what: price.gain_tokens_per_s for price in found.prices}
    assert set(prices) == {
        "1 GiB more device memory",
        "1 GB/s more on the link",
        "1 point more of acceptance",
    }
    assert all(gain > 0 for gain in prices.values())
    # With a GiB more everything fits; with twice the rate the link no longer binds.
    assert prices["1 GiB more device memory"] > prices["1 GB/s more on the link"] > 0


def test_residents_only_says_how_much_is_missing() -> None:
    with pytest.raises(NoFeasiblePlanError, match=r"does not fit without streaming: .* short") as refused:
        rank(profile(), replace(request(TIGHT), resident_only=True))
    size = int(refused.value.remedy.split("--device-memory ")[1].split("MiB")[0]) * 2**20
    assert rank(profile(), replace(request(size), resident_only=True)).best.candidate.placement.num_slots == 0
    with pytest.raises(NoFeasiblePlanError):
        rank(profile(), replace(request(size - 3 * 2**20), resident_only=True))
    capped = replace(request(400 * MB).budget, target_bytes=TIGHT)
    with pytest.raises(NoFeasiblePlanError, match="short") as refused:
        rank(profile(), replace(request(400 * MB), budget=capped, resident_only=True))
    assert refused.value.remedy.startswith("--target-memory ")


def test_what_cannot_fit_says_by_how_much_and_what_would() -> None:
    with pytest.raises(NoFeasiblePlanError, match="short of the budget") as refused:
        rank(profile(), request(8 * MB))
    size = refused.value.remedy.split("--device-memory ")[1].split("MiB")[0]
    relaxed = rank(profile(), request(int(size) * 2**20))
    assert relaxed.scores
    with pytest.raises(NoFeasiblePlanError):
        rank(profile(), request((int(size) - 2) * 2**20))


def test_a_draft_that_does_not_fit_is_refused_by_name_and_the_rest_is_planned() -> None:
    large = model("large draft", num_layers=9)
    made = profile(drafts=(large,), draft_passes=profile().draft_passes, acceptance=_recordings_of(large.fingerprint))
    found = recommend(made, request(60 * MB))
    assert [refusal.draft for refusal in found.refused] == ["n-grams", "large draft"]
    assert "short" in found.refused[1].why
    assert found.answer == "do not speculate"


def test_a_draft_length_that_no_table_reaches_is_refused_and_not_a_crash() -> None:
    made = profile()
    short = [entry.model_copy(update={"num_tokens": 8}) if entry.unit == "round" else entry for entry in made.compute]
    asked = replace(request(TIGHT), draftings=(chain(40),))  # rounds of 8 tokens were measured, and reach 32
    found = recommend(made.model_copy(update={"compute": tuple(short)}), asked)
    assert found.answer == "do not speculate"
    assert "fewer verified tokens" in found.refused[0].why


def test_a_draft_whose_own_context_is_too_short_is_refused() -> None:
    made = profile(drafts=(DRAFT.model_copy(update={"max_context_tokens": 100}),))
    found = recommend(made, request(TIGHT))
    assert "it was made for 100 tokens of context, and 128 are planned" in found.refused[1].why


def test_slots_are_as_many_as_were_asked_for() -> None:
    with pytest.raises(NoFeasiblePlanError, match="short"):
        rank(profile(), replace(request(30 * MB), slot_counts=(4,), never_speculate=True))
    asked = replace(request(TIGHT), slot_counts=(4,), never_speculate=True)
    assert {score.candidate.placement.num_slots for score in rank(profile(), asked).scores} == {4}


def test_a_draft_without_recordings_is_refused_and_not_guessed() -> None:
    found = recommend(profile(acceptance=()), request(TIGHT))
    assert "acceptance" in found.refused[1].why


def test_a_published_curve_stands_in_for_recordings() -> None:
    curve = AcceptanceCurve(
        target="target", draft="draft", domain="code", survival=(0.5, 0.25), is_same_pair=True, source="made up"
    )
    asked = replace(request(TIGHT), draftings=(chain(2),))
    score = rank(profile(acceptance=(), curves=(curve,)), asked).best_of(DRAFT.fingerprint)
    assert score is not None
    assert score.terms.tokens_per_round == pytest.approx(1.75)


def test_a_text_that_was_not_recorded_is_named() -> None:
    asked = request(TIGHT)
    found = recommend(profile(), replace(asked, workload=asked.workload.model_copy(update={"domain": "prose"})))
    assert "prose" in found.refused[1].why


def test_a_missing_measurement_is_named() -> None:
    made = profile()
    without_layers = made.model_copy(
        update={"compute": tuple(entry for entry in made.compute if entry.unit != "layer")}
    )
    with pytest.raises(BadInputError, match="compute time of layer 0"):
        rank(without_layers, request(TIGHT))
    with pytest.raises(BadInputError, match="the link disk:direct"):
        rank(made, request(TIGHT, link=DISK.model_copy(update={"mode": "direct"})))


def test_rivals_are_priced_by_what_overlaps_and_what_does_not() -> None:
    found = recommend(profile(), replace(request(TIGHT), never_speculate=True))
    rivals = {rival.name: rival for rival in found.rivals}
    # 16 layers of 2 ms, a millisecond of the host, and nothing travels.
    assert rivals["mapped"].tokens_per_s == pytest.approx(1 / (16 * 2e-3 + 1e-3))
    # One slot leaves room for one resident more: 10 layers of 10 ms, and 33 ms one after the other.
    assert rivals["no prefetch"].tokens_per_s == pytest.approx(1 / (10 * 10e-3 + 33e-3), rel=1e-3)
    assert any("faster here: mapped" in reason for reason in found.reasons)


def test_the_runner_up_lost_by_tokens_per_round_or_by_longer_rounds() -> None:
    # A draft that is never right and takes 0.1 s a token outlasts the link, beside which 33 ms of compute hide.
    found = recommend(profile(ranks=(1,) * 64, draft_pass_s=0.1), request(TIGHT))
    best, other = found.choice, found.runner_up
    assert other is not None
    assert (best.draft, other.draft, other.tokens_per_round) == (None, "draft", 1.0)
    share, rounds = best.tokens_per_s / other.tokens_per_s, other.round_s / best.round_s
    assert rounds > 1.05
    assert found.runner_up_lost == (
        f"{share:.2f} times slower: 1.00 times the tokens per round, in rounds {rounds:.2f} times as long"
    )
    speculating = recommend(profile(), request(TIGHT))
    assert speculating.runner_up is not None
    assert speculating.runner_up.draft is None
    tokens = 1 / speculating.choice.tokens_per_round
    assert f"times slower: {tokens:.2f} times the tokens per round" in (speculating.runner_up_lost or "")


def test_a_runner_up_that_decodes_faster_lost_to_a_simpler_plan() -> None:
    asked = request(TIGHT)
    scorer = scorer_for(profile(), asked)
    best = rank(profile(), asked, scorer).best
    faster = replace(best, tokens_per_s=best.tokens_per_s * 1.004, ttft_s=best.ttft_s + 0.1)
    said = recommend_module._why_lost(best, faster)
    assert said.startswith("0.4% faster once it decodes, which is noise or paid for before the first token")
    assert f"({format_s(faster.ttft_s)} against {format_s(best.ttft_s)})" in said


def test_memory_binds_where_two_slots_do_not_fit() -> None:
    assert recommend(profile(), replace(request(16 * MB), never_speculate=True)).binds == "memory"
    assert recommend(profile(), replace(request(TIGHT), never_speculate=True)).binds == "link"
    assert recommend(profile(), replace(request(400 * MB), never_speculate=True)).binds == "compute"


def test_simpler_plans_win_among_equals() -> None:
    # Link-bound with nothing to hide: a third slot gains nothing, and would take a resident's place.
    found = recommend(profile(), replace(request(TIGHT), never_speculate=True))
    assert found.choice.slots == 2


def test_unequal_layers_are_packed_better_than_by_size_order() -> None:
    # 69 MB less two slots, activations and margin leave 47 MB: four layers of 10 MB and one of 5 MB.
    small = model("x", layer_params=LAYER // 2).layers[0]
    mixed = TARGET.model_copy(update={"layers": (TARGET.layers[0], small) * 8})
    plan = plan_for_budget(mixed, None, Budget(device_bytes=69 * MB, host_bytes=10**12), request(0).wishes)
    resident_bytes = sum(u.dense_bytes for u in plan.units if u.kind == "layer" and u.placement == "resident")
    assert plan.memory.device_bytes <= 69 * MB
    assert 69 * MB - plan.memory.device_bytes < 5.2 * MB  # not even a small layer fits beside it
    assert resident_bytes == pytest.approx(45 * MB, rel=1e-3)  # regions are aligned


LAYER = 5 * MB


def _recordings_of(fingerprint: str) -> tuple[object, ...]:
    return tuple(entry.model_copy(update={"fingerprint": fingerprint}) for entry in profile().acceptance)


def test_scorer_keeps_to_the_link_that_was_asked_for() -> None:
    scorer = scorer_for(profile(), request(TIGHT, link=LINK))
    assert scorer.timing.copy_s(10 * MB) == pytest.approx(10e-3)


def test_what_logged_runs_corrected_is_in_the_plan_and_its_schedule() -> None:
    corrected = ModelError(frac=dict.fromkeys(COMPONENTS, 0.1), factor={**dict.fromkeys(COMPONENTS, 1.0), "link": 1.2})
    asked = replace(request(TIGHT), never_speculate=True, slot_counts=(2,))
    before, after = (rank(profile(), replace(asked, error=error)).best for error in (None, corrected))
    assert after.round_s == pytest.approx(1.2 * before.round_s, rel=1e-3)  # the link binds
    plan, _ = plan_of(profile(), replace(asked, error=corrected), after)
    assert plan.calibration == {"link": 1.2}
    assert round_time_s(schedule_of(plan)) == pytest.approx(after.round_s)
