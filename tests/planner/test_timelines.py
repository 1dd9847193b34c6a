"""Timelines: what is written is read again, foreign files are refused, and both are cut to the same stretch of time."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import performance, plan

from planner.contracts.errors import BadInputError
from planner.contracts.timeline import LANES, Span, chrome_trace, spans_of_trace
from planner.schedule import round_time_s, schedule_of
from planner.timelines import timelines

TIMES = st.floats(0, 1e4)


def span(lane: str, start_s: float, stop_s: float, label: str = "layer 0") -> Span:
    (found,) = [known for known in LANES if known == lane]
    return Span(lane=found, label=label, start_s=start_s, stop_s=stop_s)


def spans() -> st.SearchStrategy[Span]:
    return st.builds(
        lambda lane, label, ends: Span(lane=lane, label=label, start_s=min(ends), stop_s=max(ends)),
        st.sampled_from(LANES),
        st.text(max_size=8),
        st.tuples(TIMES, TIMES),
    )


@given(st.lists(spans(), min_size=1, max_size=20))
def test_a_timeline_is_read_as_it_was_written_from_its_first_span_on(written: list[Span]) -> None:
    origin_s = min(entry.start_s for entry in written)
    read = spans_of_trace(chrome_trace(written, "a run").encode(), "trace.json")
    assert [(entry.lane, entry.label) for entry in read] == [(entry.lane, entry.label) for entry in written]
    assert [entry.start_s for entry in read] == pytest.approx([e.start_s - origin_s for e in written], abs=1e-9)
    assert [entry.stop_s for entry in read] == pytest.approx([e.stop_s - origin_s for e in written], abs=2e-9)
    again = spans_of_trace(chrome_trace(read, "a run").encode(), "trace.json")
    assert [entry.start_s for entry in again] == pytest.approx([entry.start_s for entry in read], abs=1e-12)


def test_lanes_are_told_by_their_names_not_by_their_numbers() -> None:
    document = json.loads(chrome_trace([span("draft", 0, 1)], "a run"))
    for event in document["traceEvents"]:
        event["tid"] += 40
    (read,) = spans_of_trace(json.dumps(document).encode(), "trace.json")
    assert read.lane == "draft"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "valid dictionary|object"),
        (b'{"traceEvents": []}', "no span"),
        (b'{"traceEvents": [{"name": "a", "ph": "X", "tid": 9, "ts": 0, "dur": 1}]}', "thread 9 is none of the lanes"),
        (b'{"traceEvents": [{"name": "a", "ph": "X", "tid": 0, "ts": 0, "dur": -1}]}', "greater than or equal"),
        (b'{"traceEvents": [{"name": "a", "ph": "B", "tid": 0, "ts": 0}]}', "'M' or 'X'"),
        (b'{"traceEvents": [{"name": "a", "ph": "X", "tid": 0, "ts": NaN}]}', "JSON|finite"),
    ],
)
def test_what_is_no_timeline_of_ours_is_refused_with_the_reason(content: bytes, why: str) -> None:
    with pytest.raises(BadInputError, match=f"(?s)trace.json is no timeline of ours.*({why})"):
        spans_of_trace(content, "trace.json")


# --- two timelines ---


def run(num_rounds: int, round_s: float) -> list[Span]:
    """A prefill of one second, then rounds: a draft of a tenth and a pass with one unit."""
    made = [span("compute", 100.0, 101.0)]
    for index in range(num_rounds):
        start_s = 101.0 + index * round_s
        made += [
            span("draft", start_s, start_s + 0.1, "draft"),
            span("compute", start_s + 0.1, start_s + round_s, "pass"),
            span("compute", start_s + 0.2, start_s + 0.3),
        ]
    return made


def test_rounds_are_counted_from_the_first_draft_on() -> None:
    lines = timelines(plan(), run(4, 0.5), first_round=1, num_rounds=2)
    assert lines.length_s == pytest.approx(1.0)
    assert lines.measured.starts_s == pytest.approx((0.0, 0.5))
    assert lines.measured_rounds_s == pytest.approx((0.5, 0.5))
    assert [entry.label for entry in lines.measured.spans] == ["draft", "pass", "layer 0"] * 2


def test_predicted_rounds_fill_the_same_stretch() -> None:
    # the plan of four layers of 100 ms on the link: rounds of .4 s, so that two and a half go into one second
    lines = timelines(plan(), run(4, 0.5), first_round=0, num_rounds=2)
    assert lines.predicted_round_s == pytest.approx(round_time_s(schedule_of(plan()))) == pytest.approx(0.4)
    assert lines.predicted.starts_s == pytest.approx((0.0, 0.4, 0.8))
    assert min(entry.start_s for entry in lines.predicted.spans) == 0.0
    assert max(entry.stop_s for entry in lines.predicted.spans) == pytest.approx(1.0)
    busy_s = sum(entry.stop_s - entry.start_s for entry in lines.predicted.spans if entry.lane == "link")
    assert busy_s == pytest.approx(1.0)  # the link binds, and is never idle


def test_a_run_faster_than_predicted_is_shown_as_long_as_predicted() -> None:
    lines = timelines(plan(), run(5, 0.3), first_round=0, num_rounds=2)
    assert lines.length_s == pytest.approx(0.8)
    assert lines.measured.starts_s == pytest.approx((0.0, 0.3, 0.6))
    assert all(a.stop_s <= lines.length_s for a in lines.measured.spans)


def test_the_last_round_ends_with_the_trace() -> None:
    lines = timelines(plan(), run(3, 0.5), first_round=2, num_rounds=1)
    assert lines.measured_rounds_s == pytest.approx((0.5,))


@pytest.mark.parametrize(("first_round", "num_rounds"), [(3, 1), (0, 4), (-1, 1), (0, 0)])
def test_rounds_that_the_trace_does_not_have_are_refused(first_round: int, num_rounds: int) -> None:
    with pytest.raises(BadInputError, match="shows 3 rounds"):
        timelines(plan(), run(3, 0.5), first_round=first_round, num_rounds=num_rounds)


def test_a_plan_without_times_has_no_timeline() -> None:
    bare = plan(performance().model_copy(update={"round": None}))
    with pytest.raises(BadInputError, match="no schedule"):
        timelines(bare, run(3, 0.5), first_round=0, num_rounds=1)


def test_a_plan_that_takes_no_time_is_drawn_all_the_same() -> None:
    made = plan()
    units = tuple(unit.model_copy(update={"copy_s": 0.0, "compute_s": 0.0}) for unit in made.units)
    predicted = performance(round_s=0.0, compute_s=0.0, draft_s=0.0, host_s=0.0, speed=1.0)
    still = made.model_copy(update={"units": units, "predicted": predicted})
    lines = timelines(still, run(3, 0.5), first_round=0, num_rounds=1)
    assert lines.predicted_round_s == 0.0
    assert all(entry.start_s == entry.stop_s == 0.0 for entry in lines.predicted.spans)
