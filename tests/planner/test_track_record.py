"""What runs say of intervals: coverage counted by hand, and corrections that never see the run they correct."""

import math
from pathlib import Path

import pytest
from pages import three_rounds
from test_compare import LOW, PREDICTED, performance, plan, report

from planner.compare import compare
from planner.contracts.errors import BadInputError
from planner.contracts.report import Report
from planner.contracts.timeline import chrome_trace
from planner.figures.runs import corrections_figure, coverage_figure, residuals_figure
from planner.timelines import timelines
from planner.track_record import compared, coverages, ratios, runs_in, traced_run
from planner.uncertainty import logged_ratio


def test_coverage_counts_runs_at_or_below_each_quantile() -> None:
    # rounds of .35, .38, .4 and .5 s against P10 .36, P50 .4, P90 .44: 1, 3 and 3 of 4 lie at or below
    comparisons = [compare(report(performance(round_s=round_s))) for round_s in (0.35, 0.38, 0.4, 0.5)]
    found = {entry.component.label: entry for entry in coverages(comparisons)}
    shares = [getattr(found["round"], name) for name in ("below_p10", "below_p50", "below_p90")]
    assert [(share.frac, share.num_all) for share in shares] == [(0.25, 4), (0.75, 4), (0.75, 4)]
    assert "device memory" not in found


def test_coverage_of_no_run_is_empty() -> None:
    assert coverages([]) == ()


def test_a_run_is_corrected_by_the_others_alone() -> None:
    # draft 2 and 4 times the predicted: the median of the other run alone counts half, sqrt(4) and sqrt(2)
    runs = [report(performance(draft_s=0.06)), report(performance(draft_s=0.12))]
    found = next(entry for entry in ratios(runs) if entry.component == "draft")
    assert found.before == pytest.approx((2.0, 4.0))
    assert found.after == pytest.approx((2 / math.sqrt(4), 4 / math.sqrt(2)))


def test_one_run_corrects_nothing() -> None:
    assert all(entry.after is None for entry in ratios([report(PREDICTED)]))


def test_a_correction_that_a_plan_already_holds_is_taken_out_again() -> None:
    # predicted with a factor of 1.5: the model alone said .02, measured .06 is 3 times that
    made = plan(performance(draft_s=0.03), calibration={"draft": 1.5})
    assert logged_ratio(report(performance(draft_s=0.06), made), "draft") == pytest.approx(3.0)


def test_what_was_not_predicted_has_no_ratio() -> None:
    resident = plan(performance(round_s=0.12, link_s=None))
    found = ratios([report(performance(round_s=0.13, link_s=None), resident)])
    assert "link" not in {entry.component for entry in found}


def test_runs_that_cannot_be_compared_are_left_out_with_the_reason() -> None:
    unplanned = plan(PREDICTED.model_copy(update={"generated_tokens_per_s": None}))
    runs = compared({"good": report(LOW), "by memory": report(LOW, unplanned)})
    assert list(runs.comparisons) == ["good"]
    assert runs.left_out == {"by memory": "the report's plan predicts no speed: it was made without measurements"}


# --- a folder of reports ---


def written(folder: Path, **reports: Report) -> Path:
    for name, made in reports.items():
        made.write(folder / f"{name}.json")
    return folder


def test_runs_are_read_from_a_folder_and_what_is_none_of_ours_is_left_out(tmp_path: Path) -> None:
    unplanned = plan(PREDICTED.model_copy(update={"generated_tokens_per_s": None}))
    written(tmp_path, good=report(LOW), unplanned=report(LOW, unplanned), newer=report(LOW))
    newer = tmp_path / "newer.json"
    newer.write_text(newer.read_text().replace('"schema_version": 1', '"schema_version": 2', 1))
    (tmp_path / "notes.txt").write_text("none of ours")
    runs = runs_in(tmp_path)
    assert list(runs.reports) == ["good", "unplanned"]
    assert list(runs.comparisons) == ["good"]
    assert runs.left_out.keys() == {"unplanned", "newer"}
    assert "its schema version is 2" in runs.left_out["newer"]


def test_a_folder_without_a_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"no report in .*\n.*no JSON file lies there\n.*runtime generate --json > "
    ):
        runs_in(tmp_path)
    with pytest.raises(BadInputError, match="there is no such folder"):
        runs_in(tmp_path / "absent")
    (tmp_path / "a.json").write_text('{"schema_version": 2}')
    with pytest.raises(BadInputError, match=r"why: .*a\.json is no valid Report file: its schema version is 2"):
        runs_in(tmp_path)


def test_a_run_without_its_timeline_says_what_to_do(tmp_path: Path) -> None:
    runs = runs_in(written(tmp_path, one=report(LOW), other=report(LOW)))
    with pytest.raises(BadInputError, match=r"no report is called two\n.*there are one, other"):
        traced_run(runs, "two", tmp_path / "trace.json")
    with pytest.raises(BadInputError, match=r"cannot read the timeline .*\n.*\n.*--trace wrote of the run one"):
        traced_run(runs, "one", tmp_path / "trace.json")
    (tmp_path / "trace.json").write_text(chrome_trace(three_rounds(), "one"))
    run = traced_run(runs, "one", tmp_path / "trace.json")
    assert run.pairs == {"1 and 2": 0, "2 and 3": 1, "3 and 4": 2}
    assert run.pair(1) == timelines(run.plan, run.spans, first_round=1, num_rounds=2)


def test_runs_of_which_none_can_be_compared_still_have_figures(tmp_path: Path) -> None:
    unplanned = plan(PREDICTED.model_copy(update={"generated_tokens_per_s": None}))
    runs = runs_in(written(tmp_path, one=report(LOW, unplanned)))
    assert residuals_figure(runs.comparisons).layout.title.text
    assert coverage_figure(coverages([*runs.comparisons.values()])).layout.title.text
    assert corrections_figure(ratios([*runs.reports.values()])).layout.title.text
