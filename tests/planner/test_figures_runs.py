"""Figures of runs: what they show is what was compared, their axes say their units, and what is missing is said."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from colours import BLIND, alike, is_of_palette
from test_compare import LOW, PREDICTED, performance, plan, report
from test_timelines import run

from planner.compare import Comparison, compare
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.report import Report, RoundRecord
from planner.figures.marks import clipped, ratio_axis
from planner.figures.runs import (
    components_figure,
    corrections_figure,
    coverage_figure,
    residuals_figure,
    rounds_figure,
    timelines_figure,
)
from planner.figures.static import write_static
from planner.timelines import timelines
from planner.track_record import coverages, ratios

SLOW = performance(round_s=0.5, link_s=0.5, compute_s=0.09)


def named(figure: go.Figure, name: str) -> Sequence[Any]:
    """The traces of that name."""
    return [trace for trace in figure.data if trace.name == name]


def points(trace: go.Scatter) -> list[tuple[float, float]]:
    return [(round(float(x), 9), float(y)) for x, y in zip(trace.x or (), trace.y or (), strict=True)]


def axes_of(figure: go.Figure) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, axis in figure.to_plotly_json()["layout"].items():
        if name.startswith(("xaxis", "yaxis")):
            yield name, axis


def comparison_of(measured: Performance) -> Comparison:
    return compare(report(measured))


def round_of(accepted: int, drafted: int = 4, copied: int = 0, *, depth: int | None = None) -> RoundRecord:
    return RoundRecord(
        num_draft_tokens=drafted,
        draft_depth=depth,
        num_ngram_tokens=copied,
        num_accepted_tokens=accepted,
        num_accepted_ngram_tokens=min(copied, accepted),
        num_emitted_tokens=accepted + 1,
        compute=RoundSplit(
            round_s=0.4, compute_s=0.1, waiting_for_weights_s=0.25, draft_s=0.03, host_s=0.01, unexplained_s=0.01
        ),
        link=LinkSplit(busy_s=0.3, waiting_for_slot_s=0.1, waiting_for_disk_s=0.0),
    )


def with_rounds(*rounds: RoundRecord) -> Report:
    made = report(PREDICTED)
    drafted = sum(entry.num_draft_tokens for entry in rounds)
    accepted = sum(entry.num_accepted_tokens for entry in rounds)
    return made.model_copy(update={"rounds": rounds, "num_draft_tokens": drafted, "num_accepted_tokens": accepted})


# --- predicted beside measured ---


def test_each_component_stands_at_its_ratio_in_its_row() -> None:
    comparison = comparison_of(SLOW)
    figure = components_figure(comparison)
    labels = [entry.component.label for entry in comparison.rows]
    outside = points(named(figure, "measured, outside")[0])
    assert (1.25, labels.index("round")) in outside  # .5 s for .4, P90 .44
    inside = points(named(figure, "measured, inside")[0])
    assert (1.0, labels.index("draft")) in inside
    assert len(inside) + len(outside) == len(labels)


def test_bars_run_from_p10_to_p90_of_the_median_and_memorys_by_its_rule() -> None:
    comparison = comparison_of(SLOW)
    (bars,) = named(components_figure(comparison), "predicted, P10 to P90")
    ends = [end for end in bars.x if end is not None]
    labels = [entry.component.label for entry in comparison.rows]
    place = labels.index("compute")
    assert ends[2 * place : 2 * place + 2] == pytest.approx([0.9, 1.1])
    memory = labels.index("device memory")
    assert ends[2 * memory : 2 * memory + 2] == pytest.approx([1 / 1.08, 1.0])


def test_inside_and_outside_differ_in_shape_too() -> None:
    figure = components_figure(comparison_of(SLOW))
    symbols = {trace.name: trace.marker.symbol for trace in figure.data if trace.name.startswith("measured")}
    assert len(set(symbols.values())) == len(symbols) == 3


def test_rows_say_both_values_in_their_units() -> None:
    figure = components_figure(comparison_of(SLOW), name="a <run>")
    assert any("400.0 ms \u2192 500.0 ms" in text for text in figure.layout.yaxis.ticktext)
    assert figure.layout.title.text.startswith("a &lt;run&gt;: ")


def test_what_was_predicted_as_nothing_is_a_ring_at_the_median() -> None:
    resident = plan(performance(round_s=0.12, draft_s=0.0, link_s=None))
    comparison = compare(report(performance(round_s=0.13, draft_s=0.02, link_s=None), resident))
    unpredicted = [row.component.label for row in comparison.rows if row.is_inside is None]
    rings = points(named(components_figure(comparison), "measured, not predicted")[0])
    assert "draft" in unpredicted
    assert {x for x, _ in rings} == {1.0}
    assert len(rings) == len(unpredicted)


def test_a_run_of_another_request_says_so() -> None:
    comparison = comparison_of(SLOW)
    noted = Comparison(
        rows=comparison.rows, attribution=comparison.attribution, draft_kind="none", note="planned for another"
    )
    assert components_figure(noted).layout.title.subtitle.text == "planned for another"


# --- residuals ---


def test_every_run_has_its_error_in_every_panel() -> None:
    figure = residuals_figure({"first": comparison_of(PREDICTED), "second": comparison_of(SLOW)})
    headings = [note.text for note in figure.layout.annotations]
    panel = headings.index("<b>round</b>")
    (inside,), (outside,) = (
        [trace for trace in named(figure, name) if trace.xaxis == f"x{panel + 1}"]
        for name in ("measured, inside", "measured, outside")
    )
    assert points(inside) == [(1.0, 0)]
    assert points(outside) == [(1.25, 1)]
    assert "<b>device memory</b>" not in headings


def test_names_of_runs_stand_beside_the_first_panel_of_a_line_alone() -> None:
    figure = residuals_figure({"first": comparison_of(PREDICTED), "<second>": comparison_of(SLOW)})
    assert list(figure.layout.yaxis.ticktext) == ["first", "&lt;second&gt;"]
    assert list(figure.layout.yaxis2.ticktext) == ["", ""]
    assert list(figure.layout.yaxis4.ticktext) == ["first", "&lt;second&gt;"]


def test_panels_do_not_overlap() -> None:
    layout = residuals_figure({"run": comparison_of(SLOW)}).to_plotly_json()["layout"]
    suffixes = [name.removeprefix("xaxis") for name in layout if name.startswith("xaxis")]
    assert len(suffixes) == 10
    boxes = [(*layout[f"xaxis{suffix}"]["domain"], *layout[f"yaxis{suffix}"]["domain"]) for suffix in suffixes]
    for place, (left, right, bottom, top) in enumerate(boxes):
        assert 0 <= left < right <= 1.0000001
        assert 0 <= bottom < top <= 1
        for other in boxes[:place]:
            assert right <= other[0] or left >= other[1] or top <= other[2] or bottom >= other[3]


def test_residuals_of_no_run_are_an_empty_picture() -> None:
    assert len(residuals_figure({}).data) == 0


# --- coverage and corrections ---


def test_coverage_shows_shares_of_runs_in_percent() -> None:
    comparisons = [comparison_of(performance(round_s=round_s)) for round_s in (0.35, 0.38, 0.4, 0.5)]
    found = coverages(comparisons)
    figure = coverage_figure(found)
    row = [entry.component.label for entry in found].index("round")
    assert [named(figure, f"{name} % wanted")[0].x[row] for name in ("P10: 10", "P50: 50", "P90: 90")] == [25, 75, 75]
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx([10, 50, 90])
    assert len({trace.marker.symbol for trace in figure.data if trace.mode == "markers"}) == 3


def test_corrections_show_each_run_before_and_after() -> None:
    runs = [report(performance(draft_s=0.06)), report(performance(draft_s=0.12))]
    found = ratios(runs)
    figure = corrections_figure(found)
    row = [entry.component for entry in found].index("draft")
    before = [x for x, y in points(named(figure, "before")[0]) if round(y) == row]
    after = [x for x, y in points(named(figure, "after the other runs corrected it")[0]) if round(y) == row]
    assert before == pytest.approx([2.0, 4.0])
    assert after == pytest.approx([1.0, 4 / 2**0.5])


def test_one_run_alone_says_that_it_corrects_nothing() -> None:
    figure = corrections_figure(ratios([report(SLOW)]))
    assert "corrects nothing" in figure.layout.title.subtitle.text
    assert not named(figure, "after the other runs corrected it")[0].x


# --- rounds ---


def test_rounds_pile_up_what_was_emitted_and_outline_what_was_rejected() -> None:
    figure = rounds_figure(with_rounds(round_of(2), round_of(3, drafted=16, copied=1, depth=8), round_of(0)))
    assert list(named(figure, "the target's own")[0].y) == [1, 1, 1]
    assert list(named(figure, "accepted")[0].y) == [2, 2, 0]
    assert list(named(figure, "accepted, copied from earlier text")[0].y) == [0, 1, 0]
    assert list(named(figure, "drafted deeper, rejected")[0].y) == [2, 5, 4]
    assert figure.layout.title.text == "5 of 24 drafted tokens accepted"


def test_parts_of_a_round_add_up_to_it() -> None:
    figure = rounds_figure(with_rounds(round_of(2), round_of(3)))
    parts = [trace for trace in figure.data if trace.type == "bar" and trace.yaxis == "y2"]
    assert [sum(ys) for ys in zip(*(trace.y for trace in parts), strict=True)] == pytest.approx([400.0, 400.0])
    (predicted,) = named(figure, "predicted: 400.0 ms")
    assert list(predicted.y) == [400.0, 400.0]


def test_a_report_without_rounds_says_that_nothing_was_measured() -> None:
    figure = rounds_figure(report(LOW))
    assert len(figure.data) == 0
    assert "not measured" in figure.layout.title.subtitle.text


def test_a_run_without_a_draft_is_named_one() -> None:
    assert rounds_figure(with_rounds(round_of(0, drafted=0))).layout.title.text == "No draft: one token a round"


# --- timelines ---


def test_timelines_share_one_scale_predicted_above() -> None:
    figure = timelines_figure(timelines(plan(), run(4, 0.5), first_round=0, num_rounds=2))
    assert list(figure.layout.xaxis.range) == list(figure.layout.xaxis2.range) == [0, 1.0]
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert "400.0 ms predicted, 500.0 ms measured" in figure.layout.title.subtitle.text
    starts = [(shape.xref, shape.x0) for shape in figure.layout.shapes]
    assert starts == [
        *(("x", pytest.approx(at)) for at in (0.0, 0.4, 0.8)),
        *(("x2", pytest.approx(at)) for at in (0.0, 0.5)),
    ]


def test_a_whole_pass_lies_behind_its_units() -> None:
    figure = timelines_figure(timelines(plan(), run(4, 0.5), first_round=0, num_rounds=1))
    measured = [trace for trace in figure.data if trace.yaxis == "y2" and trace.name == "compute"]
    assert [len(trace.x) for trace in measured] == [1, 1]  # the pass, then its one streamed unit
    assert measured[0].x[0] > measured[1].x[0]


# --- what holds of every figure ---


def every_figure() -> dict[str, go.Figure]:
    runs = {"first": report(SLOW), "second": report(PREDICTED)}
    comparisons = {name: compare(made) for name, made in runs.items()}
    return {
        "components": components_figure(comparisons["first"]),
        "residuals": residuals_figure(comparisons),
        "coverage": coverage_figure(coverages(list(comparisons.values()))),
        "corrections": corrections_figure(ratios(list(runs.values()))),
        "rounds": rounds_figure(with_rounds(round_of(2), round_of(3))),
        "timelines": timelines_figure(timelines(plan(), run(4, 0.5), first_round=0, num_rounds=2)),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_axes_say_what_they_measure_and_in_which_unit(name: str) -> None:
    figure = every_figure()[name]
    titles = [axis["title"]["text"] for _, axis in axes_of(figure) if axis.get("title", {}).get("text")]
    assert titles
    assert all(title in ("tokens", "round") or title.endswith(("(%)", "(ms)", "(s)")) for title in titles)


@pytest.mark.parametrize("name", list(every_figure()))
def test_figures_are_drawn_without_a_browser(name: str, tmp_path: Path) -> None:
    write_static(every_figure()[name], tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")


# --- ratios ---


def test_a_ratio_axis_has_the_prediction_in_its_middle_and_every_ratio_within() -> None:
    axis = ratio_axis("error (%)", [0.5, 1.2])
    assert axis["range"] == pytest.approx([-math.log10(2) * 1.08, math.log10(2) * 1.08])
    assert axis["ticktext"] == ["-50", "-25", "0", "+25", "+50", "+100"]


def test_ratios_out_of_bounds_stand_at_the_bound() -> None:
    assert [clipped(ratio) for ratio in (0.0, 0.5, 1e9)] == [0.1, 0.5, 10.0]


# --- colours ---


@pytest.fixture(scope="module")
def figures() -> dict[str, go.Figure]:
    reports = [report(LOW), report(SLOW), with_rounds(round_of(2, copied=1), round_of(0))]
    comparisons = {f"run {number}": compare(made) for number, made in enumerate(reports)}
    return {
        "components": components_figure(compare(reports[1])),
        "residuals": residuals_figure(comparisons),
        "coverage": coverage_figure(coverages([*comparisons.values()])),
        "corrections": corrections_figure(ratios(reports)),
        "rounds": rounds_figure(reports[2]),
        "timelines": timelines_figure(timelines(plan(), run(4, 0.5), first_round=0, num_rounds=2)),
    }


NAMES = ("components", "residuals", "coverage", "corrections", "rounds", "timelines")


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("name", NAMES)
def test_colour_blind_people_tell_traces_apart(figures: dict[str, go.Figure], name: str, blindness: str) -> None:
    assert alike(figures[name], blindness) == []


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_those_of_the_palette(figures: dict[str, go.Figure], name: str) -> None:
    used = {trace.marker.color for trace in figures[name].data if isinstance(trace.marker.color, str)}
    assert used
    assert [colour for colour in used if not is_of_palette(colour)] == []
