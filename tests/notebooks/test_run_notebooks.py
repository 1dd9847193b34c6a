"""The notebooks of runs and of acceptance run from a clean kernel on the committed examples, and follow their menus."""

from pathlib import Path

import pytest
from notebook_run import NOTEBOOKS, outputs_in_git, run_notebook

from planner.compare import compare
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from planner.contracts.timeline import spans_of_trace
from planner.timelines import round_starts_s

EXAMPLES = NOTEBOOKS / "examples"
REPORTS = sorted((EXAMPLES / "reports").glob("*.json"))

RUN_MOVES = (
    """
assert found.left_out == {}
drawn = components.figure.widget
assert drawn.layout.title.text.endswith("inside their interval")
before = list(drawn.data[0].x)
components.menu.value = "prose-disk-chain"
assert components.figure.widget is drawn  # moved in place
assert list(drawn.data[0].x) != before
rows = found.comparisons["prose-disk-chain"].rows
assert list(drawn.layout.yaxis.tickvals) == list(range(len(rows)))
""",
    """
ends = list(lanes.figure.widget.layout.xaxis.range)
lanes.menu.value = "4 and 5"
expected = timelines(reports[TRACED].plan, spans, first_round=3, num_rounds=2)
assert list(lanes.figure.widget.layout.xaxis.range) == [0, expected.length_s / 1e-3] != ends
""",
    """
by_round.menu.value = "code-hybrid"
accepted = [bar for bar in by_round.figure.widget.data if bar.name and bar.name.startswith("accepted")]
assert sum(sum(bar.y) for bar in accepted) == reports["code-hybrid"].num_accepted_tokens
""",
)
ACCEPTANCE_MOVES = (
    """
def points(picture, name):
    return list(next(line for line in picture.figure.widget.data if line.name == name).y)

assert list(texts) == ["all texts", "prose", "code"]
before = points(growth, "tree, 8 deep")
growth.menu.value = "code"
assert points(growth, "tree, 8 deep") == list(growth_curves(profile, draft, "code")[2].tokens_per_round) != before
""",
    """
from planner.shares import Share

for picture in (sureness, matches):
    picture.menu.value = "prose"
    assert picture.message.value == ""
right = [group.right for group in match_groups(profile, "prose") if group.agreement == "all"]
assert points(matches, "always the same before") != []
""",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the examples where notebooks look for them."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    return tmp_path


@pytest.mark.slow
def test_runs_are_shown_and_follow_their_menus(folder: Path) -> None:
    run_notebook("predicted_vs_measured", folder, *RUN_MOVES)


@pytest.mark.slow
def test_acceptance_is_shown_and_follows_its_menus(folder: Path) -> None:
    run_notebook("acceptance", folder, *ACCEPTANCE_MOVES)


@pytest.mark.parametrize("name", ["predicted_vs_measured", "acceptance"])
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    assert outputs_in_git(name) == []


# --- the examples ---


def test_examples_are_small_and_know_no_folder_of_the_machine_that_made_them() -> None:
    most_bytes = {"profile.json": 250_000, "trace.json": 60_000}
    files = [*EXAMPLES.glob("*.json"), *REPORTS]
    assert {file.name for file in EXAMPLES.glob("*.json")} == set(most_bytes)
    for file in files:
        assert file.stat().st_size < most_bytes.get(file.name, 30_000), file
        assert "/work" not in file.read_text(encoding="utf-8")
        assert '"demo/' in file.read_text(encoding="utf-8") or file.name == "trace.json"


def test_example_runs_can_all_be_compared_and_hold_no_text() -> None:
    reports = [Report.read(file) for file in REPORTS]
    assert 6 <= len(reports) <= 10
    assert {report.plan.draft.kind for report in reports} == {"none", "chain", "tree", "ngram", "hybrid"}
    for report in reports:
        assert report.text == ""
        assert compare(report).rows


def test_example_profile_has_recordings_of_each_domain_and_no_text() -> None:
    profile = Profile.read(EXAMPLES / "profile.json")
    assert {entry.domain for entry in profile.acceptance} == {"code", "prose"}
    assert {entry.text for entry in profile.acceptance} == {None}
    assert any(entry.top_probs for entry in profile.acceptance)


def test_example_trace_shows_rounds_of_its_run() -> None:
    file = EXAMPLES / "trace.json"
    assert len(round_starts_s(spans_of_trace(file.read_bytes(), str(file)))) >= 8
