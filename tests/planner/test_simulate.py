"""The recurrence against an event simulation that shares nothing with it, and what must hold of any schedule."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MB, profile, request
from test_kinds import measured

from planner.cli import main
from planner.cli.simulate import simulate as command
from planner.contracts.errors import BadInputError
from planner.contracts.performance import Performance, RoundSplit
from planner.contracts.plan import Device, EmulatedLink, MemorySplit, ModelRef, NoDraft, Placement, Plan, Unit
from planner.contracts.quantities import format_s
from planner.contracts.timeline import LANES, Span, chrome_trace
from planner.drafting import DraftKind, drafting_of
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
from planner.schedule_batch import BatchDraws, ScheduleBatch, drawn_round_times_s, passes_times_s, round_times_s
from planner.search import plan_of, rank
from planner.simulate import simulate, view_round

# Eighths add up without rounding, so that equal means equal
times_s = st.one_of(st.just(0.0), st.integers(0, 40).map(lambda eighths: eighths / 8))


@st.composite
def schedules(draw: st.DrawFn, num_units: int | None = None, num_buffers: int | None = None) -> Schedule:
    size = num_units or draw(st.integers(1, 9))
    flags = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    steps = tuple(
        Step(
            label=f"layer {index}",
            is_streamed=is_streamed,
            compute_s=draw(times_s),
            copy_s=draw(times_s) if is_streamed else 0.0,
            read_s=draw(times_s) if is_streamed else 0.0,
        )
        for index, is_streamed in enumerate(flags)
    )
    return Schedule(
        steps=steps,
        num_slots=draw(st.integers(1, 4)),
        boundary_s=draw(times_s),
        num_staging_buffers=num_buffers or draw(st.integers(1, 3)),
    )


def by_lane(spans: tuple[Span, ...]) -> dict[str, list[Span]]:
    return {lane: [span for span in spans if span.lane == lane] for lane in ("disk", "link", "compute", "draft")}


def in_arrays(batch: list[Schedule]) -> ScheduleBatch:
    def array(name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return np.array([[float(getattr(step, name)) for step in schedule.steps] for schedule in batch])

    return ScheduleBatch(
        copy_s_BU=array("copy_s"),
        compute_s_BU=array("compute_s"),
        read_s_BU=array("read_s"),
        is_streamed_BU=array("is_streamed") > 0,
        num_slots_B=np.array([schedule.num_slots for schedule in batch]),
        boundary_s_B=np.array([schedule.boundary_s for schedule in batch]),
        num_staging_buffers=batch[0].num_staging_buffers,
    )


@settings(deadline=None, max_examples=300)
@given(schedules())
def test_every_span_of_the_recurrence_is_that_of_the_simulation(schedule: Schedule) -> None:
    assert by_lane(timeline(schedule, 4)) == by_lane(simulate(schedule, 4))


@settings(deadline=None)
@given(schedules())
def test_passes_end_where_the_simulation_ends(schedule: Schedule) -> None:
    last_s = max(span.stop_s for span in simulate(schedule, 2) if span.lane == "compute")
    assert passes_s(schedule, 3) == last_s
    first_s = max(span.stop_s for span in simulate(schedule, 0) if span.lane == "compute")
    assert first_pass_s(schedule) == first_s


@settings(deadline=None)
@given(schedules())
def test_round_time_is_what_long_runs_come_to(schedule: Schedule) -> None:
    # times are whole eighths, so that which of two circuits is the longer shows within some hundred rounds
    many_s = passes_s(schedule, 741) - passes_s(schedule, 501)
    longest_s = sum(step.copy_s + step.compute_s + step.read_s for step in schedule.steps) + schedule.boundary_s
    assert many_s / 240 == pytest.approx(round_time_s(schedule), abs=1e-9 * (1 + longest_s))


@settings(deadline=None)
@given(st.data())
def test_a_batch_is_its_schedules_one_by_one(data: st.DataObject) -> None:
    num_units, num_buffers = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    batch = data.draw(st.lists(schedules(num_units=num_units, num_buffers=num_buffers), min_size=1, max_size=6))
    arrays = in_arrays(batch)
    assert round_times_s(arrays).tolist() == pytest.approx([round_time_s(schedule) for schedule in batch], rel=1e-12)
    counts = data.draw(st.lists(st.integers(1, 40), min_size=len(batch), max_size=len(batch)))
    assert passes_times_s(arrays, np.array(counts)).tolist() == pytest.approx(
        [passes_s(schedule, count) for schedule, count in zip(batch, counts, strict=True)], rel=1e-9
    )
    without_disk = [
        dataclasses.replace(schedule, steps=tuple(dataclasses.replace(step, read_s=0.0) for step in schedule.steps))
        for schedule in batch
    ]
    assert round_times_s(dataclasses.replace(arrays, read_s_BU=None)).tolist() == pytest.approx(
        [round_time_s(schedule) for schedule in without_disk], rel=1e-12
    )


@settings(deadline=None)
@given(st.data())
def test_draws_of_a_batch_are_batches_of_multiplied_times(data: st.DataObject) -> None:
    num_units, num_buffers = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    arrays = in_arrays(data.draw(st.lists(schedules(num_units=num_units, num_buffers=num_buffers), min_size=1)))
    factors = st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=3, max_size=3).map(np.array)
    compute_D, transfers_D, boundary_D = data.draw(factors), data.draw(factors), data.draw(factors)
    drawn_s_BD = drawn_round_times_s(
        arrays,
        BatchDraws(
            compute_D=compute_D, transfers_D=transfers_D, boundary_s_BD=np.outer(arrays.boundary_s_B, boundary_D)
        ),
    )
    assert arrays.read_s_BU is not None
    for index, (compute, transfer, boundary) in enumerate(zip(compute_D, transfers_D, boundary_D, strict=True)):
        multiplied = dataclasses.replace(
            arrays,
            copy_s_BU=arrays.copy_s_BU * transfer,
            compute_s_BU=arrays.compute_s_BU * compute,
            read_s_BU=arrays.read_s_BU * transfer,
            boundary_s_B=arrays.boundary_s_B * boundary,
        )
        assert drawn_s_BD[:, index].tolist() == pytest.approx(round_times_s(multiplied).tolist(), rel=1e-12)


def sped_up(schedule: Schedule, name: str) -> Schedule:
    steps = tuple(dataclasses.replace(step, **{name: getattr(step, name) / 2}) for step in schedule.steps)
    return dataclasses.replace(schedule, steps=steps)


@settings(deadline=None)
@given(schedules(), st.sampled_from(["copy_s", "compute_s", "read_s"]))
def test_a_faster_lane_never_makes_a_slower_round(schedule: Schedule, name: str) -> None:
    faster = sped_up(schedule, name)
    assert round_time_s(faster) <= round_time_s(schedule) + 1e-9
    assert passes_s(faster, 3) <= passes_s(schedule, 3)


@settings(deadline=None)
@given(schedules())
def test_another_slot_never_makes_a_slower_round(schedule: Schedule) -> None:
    more = dataclasses.replace(schedule, num_slots=schedule.num_slots + 1)
    assert round_time_s(more) <= round_time_s(schedule) + 1e-9


@settings(deadline=None)
@given(schedules())
def test_the_round_is_no_shorter_than_any_lane(schedule: Schedule) -> None:
    round_s = round_time_s(schedule)
    for name in ("copy_s", "read_s"):
        assert round_s >= sum(getattr(step, name) for step in schedule.steps if step.is_streamed) - 1e-9
    assert round_s >= sum(step.compute_s for step in schedule.steps) + schedule.boundary_s - 1e-9


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=24),
    st.integers(1, 4),
    st.integers(0, 16).map(lambda eighths: eighths / 8),
    st.integers(0, 40).map(lambda eighths: eighths / 8),
)
def test_the_closed_form_is_a_lower_bound_wherever_residents_lie(
    flags: list[bool], num_slots: int, compute_s: float, boundary_s: float
) -> None:
    steps = tuple(
        Step(label=str(index), is_streamed=is_streamed, compute_s=compute_s, copy_s=1.0 if is_streamed else 0.0)
        for index, is_streamed in enumerate(flags)
    )
    bound_s = lower_bound_s(
        num_layers=len(flags),
        num_streamed=sum(flags),
        copy_s=1.0,
        compute_s=compute_s,
        boundary_s=boundary_s,
        num_slots=num_slots,
    )
    assert round_time_s(Schedule(steps=steps, num_slots=num_slots, boundary_s=boundary_s)) >= bound_s - 1e-9


@settings(deadline=None)
@given(schedules())
def test_no_two_spans_of_a_lane_overlap_and_each_pass_holds_every_unit(schedule: Schedule) -> None:
    lanes = by_lane(simulate(schedule, 2))
    lanes["compute"] = sorted([*lanes["compute"], *lanes.pop("draft")], key=lambda span: (span.start_s, span.stop_s))
    for spans in lanes.values():
        for before, after in itertools.pairwise(spans):
            assert before.stop_s <= after.start_s
    num_streamed = sum(step.is_streamed for step in schedule.steps)
    assert len(lanes["link"]) == 3 * num_streamed
    assert sum(span.label != "draft" for span in lanes["compute"]) == 3 * len(schedule.steps)


# --- what a reader sees ---


def four_layers(*, copy_s: float, compute_s: float, boundary_s: float, num_slots: int = 2) -> Schedule:
    steps = tuple(
        Step(label=f"layer {index}", is_streamed=True, copy_s=copy_s, compute_s=compute_s) for index in range(4)
    )
    return Schedule(steps=steps, num_slots=num_slots, boundary_s=boundary_s)


def test_the_view_names_the_lane_that_decides() -> None:
    assert view_round(four_layers(copy_s=2, compute_s=1, boundary_s=0), None).binds == "link"
    assert view_round(four_layers(copy_s=1, compute_s=2, boundary_s=3), None).binds == "compute"


def test_where_lanes_take_turns_the_view_says_what_another_slot_would_give() -> None:
    # test_schedule: 15 s with two slots, 13 s with three
    view = view_round(four_layers(copy_s=2, compute_s=1, boundary_s=9), 3.0)
    assert view.binds == "turns"
    assert (view.round_s, view.round_with_another_slot_s) == (15, 13)
    assert view.busy_s == {"link": 8, "compute": 4, "draft and host": 9}
    assert view.waiting_for_weights_s == 2  # 15 - 4 - 9
    assert view.generated_tokens_per_s == 3 / 15


def written_plan(folder: Path, compute_s: float | None = 1.0) -> Path:
    """Four streamed layers as in `four_layers`, of 2 s to copy, and 9 s of draft."""

    def layer(index: int, placement: Placement) -> Unit:
        return Unit(
            kind="layer",
            index=index,
            placement=placement,
            source="ram",
            wire_bytes=1,
            dense_bytes=1,
            copy_s=2.0,
            compute_s=compute_s,
        )

    split = RoundSplit(
        round_s=15.0, compute_s=4.0, waiting_for_weights_s=2.0, draft_s=8.0, host_s=1.0, unexplained_s=0.0
    )
    plan = Plan(
        target=ModelRef(name="target", fingerprint="0"),
        dtype="bf16",
        context_tokens=64,
        prefill_chunk_tokens=64,
        devices=(Device(name="cpu", budget_bytes=1),),
        link=EmulatedLink(bytes_per_s=1e9),
        slots=2,
        draft=NoDraft(),
        units=tuple(layer(index, "streamed") for index in range(4)),
        memory=MemorySplit(**dict.fromkeys(MemorySplit.model_fields, 0)),
        predicted=Performance(round=split, tokens_per_round=3.0),
    )
    plan.write(folder / "plan.json")
    return folder / "plan.json"


def test_the_command_shows_the_round_and_a_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(written_plan(tmp_path), rounds=2, trace=tmp_path / "trace.json")
    shown = capsys.readouterr()
    assert "0.20 tok/s, 3.00 tokens each" in shown.out
    assert f"in turns; with a slot more, {format_s(13.0)}" in shown.out
    assert shown.out.isascii()
    assert shown.err == ""
    rows = {line.split()[0]: line for line in shown.out.splitlines()[-4:]}
    assert list(rows) == ["link", "compute", "draft", "passes"]
    assert rows["passes"].count("|") == 3
    assert max(map(len, rows.values())) <= 100
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 3 * 8 + 2  # copies and computations, and two drafts


def test_the_command_prints_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(written_plan(tmp_path), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["round_s"], document["binds"]) == (15.0, "turns")


def test_the_command_refuses_a_plan_without_times(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"layer 0 compute_s(.|\n)*planner recommend") as refused:
        command(written_plan(tmp_path, compute_s=None))
    assert refused.value.exit_code == 3


# --- without a plan ---

CATALOGUE = ("--machine", "rtx-4090", "--target", "llama-3.1-70b", "--draft", "llama-3.2-1b", "--text", "code")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `planner`; what it wrote is on stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["planner", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--no-spec",),
        ("--draft-len", "5"),
        ("--draft-tiers", "1,3,7"),
        ("--draft-kind", "tree"),
        ("--draft-kind", "tree", "--draft-tree", "64"),
    ],
    ids=" ".join,
)
def test_without_a_plan_what_recommend_would_choose_is_simulated(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    assert run(monkeypatch, "recommend", *CATALOGUE, *flags, "-o", str(path)) == 0
    capsys.readouterr()
    assert run(monkeypatch, "simulate", str(path), "--json") == 0
    of_plan = json.loads(capsys.readouterr().out)
    assert run(monkeypatch, "simulate", *CATALOGUE, *flags, "--json") == 0
    assert json.loads(capsys.readouterr().out) == of_plan
    made = Plan.read(path)
    assert of_plan["drafting"] == drafting_of(made.draft).label
    assert of_plan["generated_tokens_per_s"] == pytest.approx(made.predicted.generated_tokens_per_s, rel=0.02)


@pytest.mark.parametrize("kind", ["tree", "ngram", "hybrid"])
def test_plans_of_every_kind_of_draft_are_simulated(
    kind: DraftKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, asked = measured(is_repetitive=False), request(80 * MB)
    ranking = rank(made, asked)
    score = next(score for score in ranking.scores if score.candidate.drafting.kind == kind)
    plan, _ = plan_of(made, asked, score)
    plan.write(tmp_path / "plan.json")
    command(tmp_path / "plan.json", rounds=2, trace=tmp_path / "trace.json")
    shown = capsys.readouterr().out
    assert f"draft                {score.candidate.drafting.label}" in shown
    assert f"{plan.predicted.tokens_per_round:.2f} tokens each" in shown
    events = [event for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if event["ph"] == "X"]
    drafting_us = sum(event["dur"] for event in events if event["name"] == "draft")
    assert drafting_us == pytest.approx(2e6 * schedule_of(plan).boundary_s)
    assert round_time_s(schedule_of(plan)) == pytest.approx(score.round_s, rel=0.02)


def test_a_profile_is_planned_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    sizes = ("--device-memory", "80MB", "--prompt-tokens", "64", "-n", "64", "--link", "emulated:1GB/s")
    assert run(monkeypatch, "simulate", str(path), *sizes) == 5
    assert "--force" in capsys.readouterr().err
    assert run(monkeypatch, "simulate", str(path), "--force", *sizes, "--draft-len", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["drafting"] == "chain of 3"


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (("{plan}", "--draft-kind", "tree"), 2, ("a plan and a kind or size of draft", "leave out the plan")),
        (("{plan}", "--machine", "rtx-4090", "--device-memory", "8GiB"), 2, ("a plan and --machine, --device-memory",)),
        ((*CATALOGUE, "--machine", "rtx-5090"), 2, ("2 machines", "planner recommend compares")),
        ((*CATALOGUE, "--draft-kind", "chain", "--draft-tree", "8"), 2, ("--draft-tree with --draft-kind chain",)),
        (("absent.json",), 3, ("absent.json",)),
        ((), 3, ("no profile to plan by", "planner profile")),
    ],
)
def test_what_cannot_be_simulated_says_why(
    arguments: tuple[str, ...],
    code: int,
    texts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = written_plan(tmp_path)
    assert run(monkeypatch, "simulate", *(word.replace("{plan}", str(plan)) for word in arguments)) == code
    err = capsys.readouterr().err
    assert all(text in err for text in texts), err


def test_a_trace_counts_from_its_first_span_in_microseconds() -> None:
    spans = [
        Span(lane="link", label="layer 0", start_s=10.0, stop_s=10.5),
        Span(lane="compute", label="layer 0", start_s=10.5, stop_s=10.75),
    ]
    events = [event for event in json.loads(chrome_trace(spans, "run"))["traceEvents"] if event["ph"] == "X"]
    assert [(event["ts"], event["dur"], LANES[event["tid"]]) for event in events] == [
        (0.0, 5e5, "link"),
        (5e5, 2.5e5, "compute"),
    ]
