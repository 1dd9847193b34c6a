"""What-if: every number is that of `recommend` after the same change, and changes work in the direction they must."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import DRAFT, MB, profile, request

from planner.api import from_catalogue
from planner.changes import CODEC_BYTES_FRAC, Change, Situation, changed, link_bytes_per_s
from planner.contracts.errors import BadInputError, NoFeasiblePlanError, UsageError
from planner.contracts.plan import Codec, CudaLink, DiskLink, EmulatedLink
from planner.recommend import recommend
from planner.what_if import MAP_DRAFTINGS, WhatIf, coarse, compared

TIGHT = 80 * MB
CHANGES = (
    Change(),
    Change(device_bytes=120 * MB),
    Change(link_bytes_per_s=3e9),
    Change(context_tokens=200),
    Change(kind="chain", num_nodes=4),
    Change(kind="none"),
    Change(draft=DRAFT.name, hazard_gain=0.02),
    Change(codec="bf12"),
)


@pytest.fixture
def made_up() -> Situation:
    return Situation(profile=profile(), request=request(TIGHT))


@pytest.mark.parametrize("change", CHANGES)
def test_every_number_is_that_of_recommend(made_up: Situation, change: Change) -> None:
    what_if = WhatIf(made_up)
    for other in CHANGES:  # whatever was asked before
        what_if.case(other)
    case, situation = what_if.case(change), changed(made_up, change)
    expected = recommend(situation.profile, situation.request)
    assert case.plan == expected.plan
    assert case.prices == expected.prices
    assert case.recommendation == expected
    curve = case.curve
    if curve is None:
        assert change.kind == "none"
        return
    assert curve.crossover == expected.crossovers[0]
    assert [point.tokens_per_s.p50 for point in curve.points] == pytest.approx(
        [point.tokens_per_s for point in expected.crossovers[0].points], rel=1e-12
    )
    assert curve.plain.p50 == pytest.approx(expected.baseline.tokens_per_s, rel=1e-12)


def test_band_of_the_chosen_length_is_that_of_its_plan(made_up: Situation) -> None:
    case = WhatIf(made_up).case(Change(kind="chain", num_nodes=4))
    curve, plan = case.curve, case.plan
    assert curve is not None
    assert plan.predicted_p10 is not None
    assert plan.predicted_p90 is not None
    (point,) = curve.points
    assert point.tokens_per_s.p10 == pytest.approx(plan.predicted_p10.generated_tokens_per_s, rel=1e-9)
    assert point.tokens_per_s.p90 == pytest.approx(plan.predicted_p90.generated_tokens_per_s, rel=1e-9)


def test_parts_add_up_to_the_round(made_up: Situation) -> None:
    parts = WhatIf(made_up).case().parts()
    assert parts[0].label == "no draft"
    for part in parts:
        total_s = part.compute_s + part.draft_s + part.host_s + part.waiting_s
        assert total_s == pytest.approx(part.round_s, rel=1e-9)
        assert part.link_s + part.link_idle_s == pytest.approx(part.round_s, rel=1e-9)


def test_timeline_is_that_of_the_plan(made_up: Situation) -> None:
    case = WhatIf(made_up).case()
    spans = case.spans()
    assert {span.lane for span in spans} == {"link", "compute", "draft"}
    computed = [span.stop_s for span in spans if span.lane == "compute"]
    rounds = len(case.plan.units)
    assert computed[3 * rounds - 1] - computed[2 * rounds - 1] == pytest.approx(case.best.round_s, rel=0.01)


def test_more_memory_and_a_faster_link_are_never_slower(made_up: Situation) -> None:
    sizes, rates = (40 * MB, 80 * MB, 160 * MB, 400 * MB), (0.25e9, 1e9, 4e9)
    cells = WhatIf(made_up).map(sizes, rates).cells
    speeds = np.array([[0.0 if cell is None else cell.tokens_per_s for cell in row] for row in cells])
    assert np.all(np.diff(speeds, axis=0) >= -1e-9)
    assert np.all(np.diff(speeds, axis=1) >= -1e-9)
    assert all(row[-1] is not None and not row[-1].is_streaming for row in cells)


def test_cells_are_what_recommend_says_of_the_coarse_request(made_up: Situation) -> None:
    what_if = WhatIf(made_up)
    chunk_tokens = what_if.case().best.candidate.prefill_chunk_tokens
    ((cell,),) = what_if.map((TIGHT,), (2e9,)).cells
    situation = changed(made_up, Change(device_bytes=TIGHT, link_bytes_per_s=2e9))
    expected = recommend(situation.profile, coarse(situation.request, chunk_tokens))
    assert cell is not None
    assert (cell.tokens_per_s, cell.kind) == (expected.choice.tokens_per_s, expected.choice.draft_kind)


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        (Change(), None),
        (Change(kind="chain", num_nodes=3), {("none", 0), ("chain", 3)}),
        (Change(kind="chain", num_nodes=4), {("none", 0), ("chain", 4)}),
        (Change(kind="none"), {("none", 0)}),
    ],
)
def test_a_map_considers_no_size_but_the_chosen_one(
    made_up: Situation, change: Change, sizes: set[tuple[str, int]] | None
) -> None:
    found = coarse(changed(made_up, change).request, chunk_tokens=64).draftings
    if sizes is None:
        assert found == MAP_DRAFTINGS
    else:
        assert {(entry.kind, entry.num_nodes) for entry in found} == sizes


def test_what_a_case_says_is_computed_once(made_up: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    case = WhatIf(made_up).case()
    assert case.curve is case.curve
    prices, plan = case.prices, case.plan

    def rank_again(*_: object) -> None:
        raise AssertionError("ranked again")

    monkeypatch.setattr("planner.recommend.rank", rank_again)
    assert case.recommendation.prices == prices
    assert case.recommendation.plan is plan


def test_a_cell_in_which_nothing_fits_is_empty(made_up: Situation) -> None:
    assert WhatIf(made_up).map((MB,), (1e9,)).cells == ((None,),)
    with pytest.raises(NoFeasiblePlanError):
        WhatIf(made_up).case(Change(device_bytes=MB))


@pytest.mark.parametrize("codec", CODEC_BYTES_FRAC)
def test_codec_shortens_copies_by_its_ratio(made_up: Situation, codec: Codec) -> None:
    found = changed(made_up, Change(codec=codec)).request.wishes.link
    before = made_up.request.wishes.link
    assert isinstance(found, EmulatedLink)
    assert isinstance(before, EmulatedLink)
    assert found.bytes_per_s == pytest.approx(before.bytes_per_s / CODEC_BYTES_FRAC[codec])


def test_bandwidth_asked_for_is_that_of_the_largest_copy() -> None:
    estimated = from_catalogue("rtx-4090", "llama-3.1-70b", ["llama-3.2-1b"])
    found = changed(estimated, Change(link_bytes_per_s=50e9))
    assert link_bytes_per_s(found.profile, CudaLink()) == pytest.approx(50e9)
    assert found.profile.compute == estimated.profile.compute


def test_unknown_link_is_refused(made_up: Situation) -> None:
    with pytest.raises(BadInputError, match="does not know the link disk:direct"):
        link_bytes_per_s(made_up.profile, DiskLink(mode="direct"))


def test_unknown_draft_is_refused(made_up: Situation) -> None:
    with pytest.raises(BadInputError, match="knows no draft llama"):
        changed(made_up, Change(draft="llama"))


def test_context_without_room_for_a_prompt_is_refused(made_up: Situation) -> None:
    with pytest.raises(UsageError, match="no room for a prompt"):
        changed(made_up, Change(context_tokens=made_up.request.workload.new_tokens))


def test_size_that_no_draft_has_is_refused(made_up: Situation) -> None:
    with pytest.raises(UsageError, match="no draft of 17 nodes is considered"):
        changed(made_up, Change(kind="chain", num_nodes=17))


def test_published_acceptance_is_not_taken_for_another_text() -> None:
    with pytest.raises(UsageError, match="cannot become prose"):
        changed(from_catalogue("rtx-4090", "llama-3.1-70b", ["llama-3.2-1b"]), Change(domain="prose"))


def test_machines_are_compared_the_fastest_first_and_failures_said(made_up: Situation) -> None:
    small = replace(made_up, request=request(MB))
    roomy = replace(made_up, request=request(400 * MB))
    names = ["roomy", "tight", "small"]
    advice = compared({"small": WhatIf(small), "tight": WhatIf(made_up), "roomy": WhatIf(roomy)})
    assert [entry.name for entry in advice] == names
    assert advice[-1].recommendation is None
    assert "does not fit" in (advice[-1].why_not or "")
