"""Round times by hand, the figures of DESIGN section 3, and plans turned into schedules."""

import pytest

from planner.contracts.errors import BadInputError
from planner.contracts.performance import Performance, RoundSplit
from planner.contracts.plan import Device, DiskLink, EmulatedLink, MemorySplit, ModelRef, NoDraft, Plan, Staging, Unit
from planner.contracts.timeline import Span
from planner.schedule import (
    Schedule,
    Step,
    first_pass_s,
    lower_bound_s,
    passes_s,
    round_time_s,
    schedule_of,
    timeline,
)


def layers(
    num_layers: int, num_streamed: int, *, num_slots: int, compute_s: float, boundary_s: float = 0.0
) -> Schedule:
    """Equal layers with a copy of 1 s, residents spread evenly over the interior."""
    num_residents = num_layers - num_streamed
    residents = {(2 * i + 1) * num_layers // (2 * num_residents) for i in range(num_residents)}
    steps = tuple(
        Step(
            label=f"layer {index}",
            is_streamed=index not in residents,
            compute_s=compute_s,
            copy_s=0.0 if index in residents else 1.0,
        )
        for index in range(num_layers)
    )
    return Schedule(steps=steps, num_slots=num_slots, boundary_s=boundary_s)


def bound_s(num_streamed: int, *, num_slots: int, compute_s: float, boundary_s: float = 0.0) -> float:
    return lower_bound_s(
        num_layers=80,
        num_streamed=num_streamed,
        copy_s=1.0,
        compute_s=compute_s,
        boundary_s=boundary_s,
        num_slots=num_slots,
    )


def streamed(*times_s: tuple[float, float], num_slots: int, boundary_s: float = 0.0) -> Schedule:
    """All streamed: (copy_s, compute_s) of each layer."""
    steps = tuple(
        Step(label=f"layer {index}", is_streamed=True, copy_s=copy_s, compute_s=compute_s)
        for index, (copy_s, compute_s) in enumerate(times_s)
    )
    return Schedule(steps=steps, num_slots=num_slots, boundary_s=boundary_s)


# --- by hand ---


def test_with_one_slot_copy_and_compute_take_turns() -> None:
    # 3 x (2 + 1) = 9; the boundary of 1 hides under the next pass's first copy of 2
    assert round_time_s(streamed((2, 1), (2, 1), (2, 1), num_slots=1, boundary_s=1)) == 9


def test_with_two_slots_the_slower_lane_decides() -> None:
    assert round_time_s(streamed((2, 1), (2, 1), (2, 1), num_slots=2)) == 6
    assert round_time_s(streamed((1, 2), (1, 2), (1, 2), num_slots=2)) == 6


def test_a_draft_longer_than_the_slots_hold_is_exposed() -> None:
    # compute chain of the boundary: last layer 1, draft 9, first layer 1 = 11; meanwhile two copies are done, so that
    # the other two of four copies, 2 x 2, are still to come: 11 + 4 = 15 > 4 x 2
    assert round_time_s(streamed((2, 1), (2, 1), (2, 1), (2, 1), num_slots=2, boundary_s=9)) == 15
    # with a third slot one copy less: 13, which is also all of compute (4 x 1 + 9)
    assert round_time_s(streamed((2, 1), (2, 1), (2, 1), (2, 1), num_slots=3, boundary_s=9)) == 13


def test_near_ties_between_lanes_are_decided_exactly() -> None:
    # link 6, compute 6 + 2^-24: cold, the link is 6 ahead, and ten million rounds would pass until compute prevails
    steps = (
        Step(label="a", is_streamed=True, copy_s=6.0, compute_s=0.0),
        Step(label="b", is_streamed=False, compute_s=6.0 + 2**-24),
    )
    assert round_time_s(Schedule(steps=steps, num_slots=1, boundary_s=0.0)) == 6.0 + 2**-24


def test_nothing_streamed_is_compute_and_boundary() -> None:
    resident = Schedule(
        steps=tuple(Step(label=str(i), is_streamed=False, compute_s=0.5) for i in range(4)), num_slots=0, boundary_s=3.0
    )
    assert round_time_s(resident) == 5.0
    assert first_pass_s(resident) == 2.0


def test_the_disk_decides_where_it_is_the_slowest() -> None:
    steps = tuple(
        Step(label=str(i), is_streamed=True, copy_s=1.0, compute_s=0.5, read_s=3.0 if i % 2 else 0.0) for i in range(4)
    )
    assert round_time_s(Schedule(steps=steps, num_slots=2, boundary_s=0.0)) == 6.0  # two reads of 3


def test_one_staging_buffer_makes_read_and_copy_take_turns() -> None:
    steps = tuple(Step(label=str(i), is_streamed=True, copy_s=1.0, compute_s=0.0, read_s=3.0) for i in range(2))
    one = Schedule(steps=steps, num_slots=2, boundary_s=0.0, num_staging_buffers=1)
    two = Schedule(steps=steps, num_slots=2, boundary_s=0.0, num_staging_buffers=2)
    assert round_time_s(one) == 8.0  # 2 x (3 + 1)
    assert round_time_s(two) == 6.0


def test_more_slots_than_units_are_not_used() -> None:
    # the runtime opens one slot here: each copy waits for the computation before it
    assert round_time_s(streamed((2, 1), num_slots=3)) == 3


def test_first_pass_waits_for_its_first_copies() -> None:
    # copies end at 2, 4, 6; the last computes after that: 7
    cold = streamed((2, 1), (2, 1), (2, 1), num_slots=2, boundary_s=1)
    assert first_pass_s(cold) == 7
    # two copies are done before the second pass begins (slots free at 3 and 5: copies end at 8, 10, 12): 13
    assert passes_s(cold, 2) == 13


def test_timeline_by_hand() -> None:
    # draft from 3 to 5; the one slot of the one unit is free at 3, so that its second copy runs beside the draft
    schedule = streamed((2, 1), num_slots=1, boundary_s=2)
    assert timeline(schedule, 1) == (
        Span(lane="link", label="layer 0", start_s=0, stop_s=2),
        Span(lane="compute", label="layer 0", start_s=2, stop_s=3),
        Span(lane="draft", label="draft", start_s=3, stop_s=5),
        Span(lane="link", label="layer 0", start_s=3, stop_s=5),
        Span(lane="compute", label="layer 0", start_s=5, stop_s=6),
    )


# --- DESIGN section 3 ---


@pytest.mark.parametrize(
    ("num_streamed", "num_slots", "round_s", "closed_form_s"),
    [
        (60, 2, 68.0, 64.0),  # closed form: 80 x .8
        (60, 3, 64.0, 64.0),
        (62, 2, 69.2, 64.0),  # memory for 20 layers, slots included: 18 residents and 2 slots,
        (63, 3, 64.0, 64.0),  # or 17 and 3
    ],
)
def test_above_half_a_copy_of_compute_two_slots_fall_short_of_the_closed_form(
    num_streamed: int, num_slots: int, round_s: float, closed_form_s: float
) -> None:
    schedule = layers(80, num_streamed, num_slots=num_slots, compute_s=0.8)
    assert round_time_s(schedule) == pytest.approx(round_s)
    assert bound_s(num_streamed, num_slots=num_slots, compute_s=0.8) == pytest.approx(closed_form_s)


@pytest.mark.parametrize(("num_slots", "round_s"), [(1, 76.1), (2, 70.2), (3, 70.2), (4, 70.2), (10, 70.2), (12, 72.0)])
def test_further_slots_hide_no_more_of_the_draft_than_the_residents_they_replace(
    num_slots: int, round_s: float
) -> None:
    # memory for 20 layers, draft of 10 copies: (80 - 20) + 10 + 2 x .1; with one slot 60 + 10 + 61 x .1
    schedule = layers(80, 60 + num_slots, num_slots=num_slots, compute_s=0.1, boundary_s=10.0)
    assert round_time_s(schedule) == pytest.approx(round_s)
    assert bound_s(60 + num_slots, num_slots=num_slots, compute_s=0.1, boundary_s=10.0) == pytest.approx(round_s)


@pytest.mark.parametrize("num_slots", [2, 3, 4])
@pytest.mark.parametrize("compute_s", [0.05, 0.2, 0.35, 0.5])
@pytest.mark.parametrize("boundary_s", [0.0, 1.5, 7.0])
@pytest.mark.parametrize("num_streamed", [41, 45, 60, 70])  # of 80; fewer, and residents touch the boundary
def test_the_closed_form_is_tight_up_to_half_a_copy_of_compute(
    num_slots: int, compute_s: float, boundary_s: float, num_streamed: int
) -> None:
    schedule = layers(80, num_streamed, num_slots=num_slots, compute_s=compute_s, boundary_s=boundary_s)
    expected_s = bound_s(num_streamed, num_slots=num_slots, compute_s=compute_s, boundary_s=boundary_s)
    assert round_time_s(schedule) == pytest.approx(expected_s)


def test_residents_belong_in_the_interior_not_at_the_front() -> None:
    # bunched at the boundary they merge with the draft
    spread = layers(80, 60, num_slots=2, compute_s=0.3, boundary_s=1.5)
    in_front = Schedule(
        steps=tuple(sorted(spread.steps, key=lambda step: step.is_streamed)), num_slots=2, boundary_s=1.5
    )
    assert round_time_s(spread) == pytest.approx(60.1)  # (60 - 2) + 1.5 + 2 x .3
    assert round_time_s(in_front) == pytest.approx(66.1)  # and the 20 residents, 20 x .3


# --- plans ---


def plan_of(*units: Unit, link: DiskLink | EmulatedLink | None = None, has_prediction: bool = True) -> Plan:
    round_split = RoundSplit(
        round_s=0.4, compute_s=0.2, waiting_for_weights_s=0.1, draft_s=0.06, host_s=0.04, unexplained_s=0.0
    )
    return Plan(
        target=ModelRef(name="target", fingerprint="0"),
        dtype="bf16",
        context_tokens=64,
        prefill_chunk_tokens=64,
        devices=(Device(name="cuda:0", budget_bytes=2**30),),
        link=link or EmulatedLink(bytes_per_s=1e9),
        slots=2,
        staging=Staging(num_buffers=3, buffer_bytes=1000),
        draft=NoDraft(),
        units=units,
        memory=MemorySplit(**dict.fromkeys(MemorySplit.model_fields, 0)),
        predicted=Performance(round=round_split if has_prediction else None),
    )


EMBEDDING = Unit(
    kind="embedding", index=0, placement="host", source="ram", wire_bytes=0, dense_bytes=10, compute_s=0.01
)
LAYER = Unit(
    kind="layer",
    index=0,
    placement="streamed",
    source="ram",
    wire_bytes=10,
    dense_bytes=10,
    copy_s=0.2,
    compute_s=0.1,
)
HEAD = Unit(
    kind="head_chunk",
    index=0,
    placement="resident",
    source="ram",
    wire_bytes=10,
    dense_bytes=10,
    rows=(0, 5),
    copy_s=0.3,
    compute_s=0.05,
)


def test_a_plan_becomes_the_schedule_of_its_verify_pass() -> None:
    assert schedule_of(plan_of(EMBEDDING, LAYER, HEAD)) == Schedule(
        steps=(
            Step(label="embedding 0", is_streamed=False, compute_s=0.01),
            Step(label="layer 0", is_streamed=True, compute_s=0.1, copy_s=0.2),
            Step(label="head_chunk 0", is_streamed=False, compute_s=0.05),  # resident: its copy is not made
        ),
        num_slots=2,
        boundary_s=0.1,  # draft and host
        num_staging_buffers=3,
    )


@pytest.mark.parametrize("missing", ["copy_s", "compute_s"])
def test_a_plan_without_times_is_refused_and_the_unit_named(missing: str) -> None:
    with pytest.raises(BadInputError, match=rf"missing: layer 0 {missing}\n  try: plan with planner recommend"):
        schedule_of(plan_of(EMBEDDING, LAYER.model_copy(update={missing: None}), HEAD))


def test_a_plan_without_a_predicted_round_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"missing: predicted\.round"):
        schedule_of(plan_of(EMBEDDING, LAYER, HEAD, has_prediction=False))


def test_a_long_list_of_missing_times_is_cut() -> None:
    layers_without = [
        LAYER.model_copy(update={"index": index, "compute_s": None, "copy_s": None}) for index in range(5)
    ]
    with pytest.raises(BadInputError, match="layer 0 copy_s, layer 1 compute_s and 7 more"):
        schedule_of(plan_of(EMBEDDING, *layers_without, HEAD))


def test_units_from_disk_are_read_before_they_are_copied_unless_the_disk_is_the_link() -> None:
    from_disk = LAYER.model_copy(update={"source": "disk", "read_s": 0.5})
    schedule = schedule_of(plan_of(EMBEDDING, from_disk, HEAD))
    assert (schedule.steps[1].read_s, schedule.num_staging_buffers) == (0.5, 3)
    assert schedule_of(plan_of(EMBEDDING, from_disk, HEAD, link=DiskLink())).steps[1].read_s == 0.0
    with pytest.raises(BadInputError, match="missing: layer 0 read_s"):
        schedule_of(plan_of(EMBEDDING, LAYER.model_copy(update={"source": "disk"}), HEAD))
