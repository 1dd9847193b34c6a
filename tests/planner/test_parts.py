"""Attention and MLP placed by themselves: what that saves, when it does not pay, and that nothing is over the room."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import LINK, MB, NUM_LAYERS, model, profile, request, spread

from planner.budget import Budget, Wishes, plan_for_budget
from planner.contracts.layer_parts import PART_KINDS, TENSORS_OF
from planner.contracts.model_shape import LayerShape, ModelShape, TensorGroup, align
from planner.contracts.plan import EmulatedLink, LinkChoice
from planner.contracts.profile import ComputeMeasurement, Profile
from planner.drafting import chain
from planner.placement import Placement, choose_residents, smallest_bytes, spread_evenly, units_of
from planner.recommend import recommend
from planner.schedule import round_time_s, schedule_of
from planner.search import Request, candidates_of, granularities, plan_of, rank, scorer_for
from planner.timing import Timing

QUICK = settings(deadline=None)
NORMS_BYTES = NUM_LAYERS * 2 * 256


def layer(attention_params: int, mlp_params: int) -> LayerShape:
    """A layer with two norms, of 256 bytes each as they lie in memory."""
    sizes = {"attention": attention_params, "mlp": mlp_params}
    parts = [TensorGroup(num_params=sizes[kind], count=1, part=kind) for kind in PART_KINDS if kind != "layer"]
    return LayerShape(tensors=(*parts, TensorGroup(num_params=64, count=2)), kind="full")


# 16 layers of 4 MB of attention and 6 MB of MLP; its head is smaller than a kilobyte times ten.
TARGET = model("target", layers=(layer(2 * MB, 3 * MB),) * NUM_LAYERS)


def split_profile(edge_s: float = 0.0, target: ModelShape = TARGET) -> Profile:
    """The made-up profile with times of the parts: two fifths of a layer's for attention, the rest for the MLP."""
    made = profile()
    shares = {"attention": 0.4, "mlp": 0.6}
    layers = [entry for entry in made.compute if entry.unit == "layer"]
    parts = [
        entry.model_copy(update={"unit": kind, "duration_s": spread(share * entry.duration_s.median)})
        for entry in layers
        for kind, share in shares.items()
    ]
    edge = ComputeMeasurement(unit="edge", num_tokens=1, context_tokens=0, duration_s=spread(edge_s))
    return made.model_copy(update={"target": target, "compute": (*made.compute, *parts, edge)})


def alone(device_bytes: int, link: LinkChoice = LINK) -> Request:
    """Without a draft, with two slots."""
    return replace(request(device_bytes, link=link), never_speculate=True, slot_counts=(2,))


def parts_of(target: ModelShape, room_bytes: int, num_slots: int = 2) -> Placement:
    return choose_residents(target, room_bytes, "bf16", num_slots, granularity="parts")


def streamed_bytes(target: ModelShape, placement: Placement) -> int:
    return sum(unit.dense_bytes for unit in units_of(target, "bf16", placement) if unit.placement == "streamed")


def taken_bytes(target: ModelShape, placement: Placement) -> int:
    """Bytes of slots, residents and norms."""
    units = units_of(target, "bf16", placement)
    largest = max((unit.dense_bytes for unit in units if unit.placement == "streamed"), default=0)
    norms_bytes = sum(target.layer_bytes("bf16", "rest")) if placement.granularity == "parts" else 0
    residents_bytes = sum(unit.dense_bytes for unit in units if unit.placement == "resident")
    return placement.num_slots * largest + residents_bytes + norms_bytes


# --- packing, by hand ---


def test_parts_take_smaller_slots_and_fill_the_room_more_closely() -> None:
    # 36 MB. Whole: 2 slots of 10 MB leave 16 MB, for 1 layer of 10 MB; 150 MB travel.
    # Parts: 2 slots of 6 MB leave 24 MB less norms and head, for 3 MLPs and an attention, 22 MB; 138 MB travel.
    # (One attention more and one MLP less are 20 MB, four MLPs are 24 MB.)
    whole = choose_residents(TARGET, 36 * MB, "bf16", 2)
    parts = parts_of(TARGET, 36 * MB)
    assert len(whole.residents) == 1
    assert parts.resident_parts is not None
    assert sorted(kind for kind, _ in parts.resident_parts) == ["attention", "mlp", "mlp", "mlp"]
    assert streamed_bytes(TARGET, whole) == pytest.approx(150 * MB, rel=1e-3)
    assert streamed_bytes(TARGET, parts) == pytest.approx(138 * MB, rel=1e-3)


def test_each_kind_of_part_is_spread_evenly_and_a_layer_is_resident_with_all_its_parts() -> None:
    # 12 MB of slots, and 101 MB for residents: 100 MB of sizes 4 and 6 MB.
    placement = parts_of(TARGET, 113 * MB)
    assert placement.resident_parts is not None
    by_kind = {kind: {index for part, index in placement.resident_parts if part == kind} for kind in PART_KINDS}
    for indices in by_kind.values():
        assert indices == spread_evenly(len(indices), range(NUM_LAYERS))
    assert 4 * len(by_kind["attention"]) + 6 * len(by_kind["mlp"]) == 100
    assert placement.residents == by_kind["attention"] & by_kind["mlp"]


def test_what_fits_is_placed_whole() -> None:
    placement = parts_of(TARGET, 200 * MB)
    assert (placement.granularity, placement.num_slots, len(placement.residents)) == ("layers", 0, NUM_LAYERS)


def test_room_for_the_slots_and_norms_alone_is_enough() -> None:
    least = smallest_bytes(TARGET, "bf16", 2, "parts")
    assert least == 2 * align(6 * MB) + NORMS_BYTES
    assert taken_bytes(TARGET, parts_of(TARGET, least)) == least


# --- packing, in general ---

PART_PARAMS = st.integers(min_value=32, max_value=2**16)
EQUAL = st.builds(lambda one, count: (one,) * count, st.builds(layer, PART_PARAMS, PART_PARAMS), st.integers(1, 12))
UNEQUAL = st.lists(st.builds(layer, PART_PARAMS, PART_PARAMS), min_size=1, max_size=8).map(tuple)

LARGER = st.builds(layer, st.integers(2**11, 2**16), st.integers(2**11, 2**16))  # than half of the head


@QUICK
@given(EQUAL | UNEQUAL, st.integers(1, 4), st.floats(0, 1))
def test_parts_never_take_more_than_the_room(layers: Sequence[LayerShape], num_slots: int, share: float) -> None:
    target = model("any", layers=layers)
    least = smallest_bytes(target, "bf16", num_slots, "parts")
    room_bytes = least + int(share * target.weights_bytes("bf16"))
    assert taken_bytes(target, parts_of(target, room_bytes, num_slots)) <= room_bytes


@QUICK
@given(EQUAL, st.integers(1, 4), st.lists(st.floats(0, 1.2), min_size=2, max_size=5))
def test_more_room_never_streams_more_bytes(layers: Sequence[LayerShape], num_slots: int, shares: list[float]) -> None:
    target = model("any", layers=layers)
    least = smallest_bytes(target, "bf16", num_slots, "parts")
    rooms = [least + int(share * target.weights_bytes("bf16")) for share in sorted(shares)]
    streamed = [streamed_bytes(target, parts_of(target, room_bytes, num_slots)) for room_bytes in rooms]
    assert all(more <= less for less, more in pairwise(streamed))


@QUICK
@given(LARGER, LARGER, st.floats(0, 1))
def test_no_other_choice_keeps_more(one: LayerShape, other: LayerShape, share: float) -> None:
    # By enumeration of two equal layers, and by integer programming of two that differ.
    for layers in ((one, one), (one, other)):
        target = model("any", layers=layers)
        room_bytes = smallest_bytes(target, "bf16", 1, "parts") + int(share * target.weights_bytes("bf16"))
        placement = parts_of(target, room_bytes, 1)
        if placement.num_slots == 0:
            continue
        units = [unit for unit in units_of(target, "bf16", placement) if unit.kind != "embedding"]
        free_bytes = room_bytes - smallest_bytes(target, "bf16", 1, "parts")
        most = max(
            size
            for kept in itertools.product((0, 1), repeat=len(units))
            for size in [sum(unit.dense_bytes for unit, keep in zip(units, kept, strict=True) if keep)]
            if size <= free_bytes
        )
        chosen = sum(unit.dense_bytes for unit in units if unit.placement == "resident")
        assert chosen >= most * (1 - 1e-3)  # the last head chunk counts as a whole one, and the solver has a gap


# --- search ---


def test_parts_win_where_the_link_binds() -> None:
    scores = rank(split_profile(), alone(60 * MB)).scores
    best = {
        grain: next(s for s in scores if s.candidate.placement.granularity == grain) for grain in ("layers", "parts")
    }
    assert scores[0] is best["parts"]
    for score in best.values():
        assert score.round_s == pytest.approx(streamed_bytes(TARGET, score.candidate.placement) / 1e9, rel=1e-2)


def test_whole_layers_win_where_compute_binds() -> None:
    # Over 100 GB/s a round is 16 layers of 2 ms, however they are placed: the simpler plan is taken.
    best = rank(split_profile(), alone(60 * MB, link=EmulatedLink(bytes_per_s=100e9))).best
    assert best.candidate.placement.granularity == "layers"
    assert best.round_s == pytest.approx(16 * 2e-3 + 1e-3, rel=0.05)


def test_whole_layers_win_where_handing_over_costs_more_than_parts_save() -> None:
    # 12 ms for each streamed unit: 24 or more parts take longer than 12 layers with 10 ms of copies each.
    best = rank(split_profile(edge_s=12e-3), alone(60 * MB)).best
    assert best.candidate.placement.granularity == "layers"


def test_parts_are_considered_only_where_they_may_be_placed_and_were_measured() -> None:
    def considered(made: Profile, asked: Request) -> tuple[str, ...]:
        return granularities(scorer_for(made, asked), asked)

    asked = alone(60 * MB)
    assert considered(split_profile(), asked) == ("layers", "parts")
    assert considered(profile(target=TARGET), asked) == ("layers",)
    assert considered(split_profile(target=TARGET.model_copy(update={"model_type": "jamba"})), asked) == ("layers",)
    assert considered(split_profile(target=model("no attention")), asked) == ("layers",)
    limited = replace(asked, wishes=replace(asked.wishes, most_residents=2))
    assert considered(split_profile(), limited) == ("layers",)


def test_both_granularities_are_candidates_at_every_length() -> None:
    asked = replace(request(60 * MB), draftings=(chain(1), chain(4)), slot_counts=(2, 3))
    found = candidates_of(TARGET, model("draft", num_layers=1, layer_params=MB), asked, ("layers", "parts"))
    seen = {(entry.drafting.num_nodes, entry.placement.num_slots, entry.placement.granularity) for entry in found}
    assert seen == set(itertools.product((1, 4), (2, 3), ("layers", "parts")))


def test_a_plan_of_parts_takes_what_its_score_says() -> None:
    asked, made = replace(request(60 * MB), draftings=(chain(1), chain(3))), split_profile()
    scores = [score for score in rank(made, asked).scores if score.candidate.placement.granularity == "parts"]
    assert scores
    for score in scores[::5]:
        plan, _ = plan_of(made, asked, score)
        placement = score.candidate.placement
        assert plan.granularity == "parts"
        resident = [unit for unit in plan.units if unit.placement == "resident"]
        parts = {(kind, unit.index) for unit in resident for kind in PART_KINDS if unit.kind == kind}
        assert placement.resident_parts is not None
        assert parts == set(placement.resident_parts)
        assert plan.memory.residents_bytes + plan.memory.slots_bytes == taken_bytes(TARGET, placement) + 256
        assert plan.memory.device_bytes <= 60 * MB < plan.memory.device_bytes * 1.011 + 4 * MB
        assert round_time_s(schedule_of(plan)) == pytest.approx(score.round_s, rel=0.01)


def test_recommendation_counts_layers_that_are_resident_whole() -> None:
    found = recommend(split_profile(), alone(60 * MB))
    assert found.plan.granularity == "parts"
    resident = {(unit.kind, unit.index) for unit in found.plan.units if unit.placement == "resident"}
    whole = [index for index in range(NUM_LAYERS) if all((kind, index) in resident for kind in PART_KINDS)]
    assert found.choice.num_resident_layers == len(whole)


def test_smaller_slots_fit_where_two_whole_layers_do_not() -> None:
    # 16 MB beside a few of activations: two slots of 6 MB, but not of 10 MB.
    best = rank(split_profile(), alone(16 * MB)).best
    assert (best.candidate.placement.granularity, best.candidate.placement.num_slots) == ("parts", 2)


def test_time_of_a_part_is_read_off_its_own_table() -> None:
    timing = Timing(split_profile(), LINK)
    parts_s = [timing.decoder_table(kind, 3).at(1, 0) for kind in PART_KINDS]
    assert parts_s == pytest.approx([0.8e-3, 1.2e-3])
    assert sum(parts_s) == pytest.approx(timing.layer_s(3, 1, 0))


def test_units_of_parts_hold_the_tensors_of_their_part() -> None:
    plan = plan_for_budget(
        TARGET,
        None,
        Budget(device_bytes=60 * MB, host_bytes=10**12),
        Wishes(dtype="bf16", context_tokens=64, link=LINK, device="cpu", granularity="parts"),
    )
    for unit in plan.units:
        if unit.kind in PART_KINDS:
            assert unit.wire_bytes == TARGET.layers[unit.index].wire_bytes("bf16", *TENSORS_OF[unit.kind])
