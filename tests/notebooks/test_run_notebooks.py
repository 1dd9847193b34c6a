"""The notebooks of runs and of acceptance run from a clean kernel on the committed examples, and follow their menus."""

from pathlib import Path

import pytest
from notebook_run import NOTEBOOKS, outputs_in_git, refusal_of, run_notebook

from planner.compare import compare
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from planner.contracts.timeline import spans_of_trace
from planner.timelines import round_starts_s

EXAMPLES = NOTEBOOKS / "examples"
REPORTS = sorted((EXAMPLES / "reports").glob("*.json"))

WIDGETS = ("ipywidgets", "anywidget")

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
assert list(lanes.figure.widget.layout.xaxis.range) == [0, run.pair(3).length_s / 1e-3] != ends
""",
    """
by_round.menu.value = "code-hybrid"
accepted = [bar for bar in by_round.figure.widget.data if bar.name and bar.name.startswith("accepted")]
assert sum(sum(bar.y) for bar in accepted) == found.reports["code-hybrid"].num_accepted_tokens
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
    assert picture.figure.message.value == ""
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


# --- what is wrong is said without a traceback ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "replaced", "said"),
    [
        ("predicted_vs_measured", {"examples/reports": "empty"}, "there is no report in empty"),
        ("predicted_vs_measured", {"examples/reports": "newer"}, "its schema version is 2"),
        ("predicted_vs_measured", {"examples/trace.json": "absent.json"}, "cannot read the timeline absent.json"),
        ("predicted_vs_measured", {'"code-tree"': '"code-oak"'}, "no report is called code-oak"),
        ("acceptance", {"examples/profile.json": "absent.json"}, "cannot read absent.json"),
        ("acceptance", {"examples/profile.json": "bare.json"}, "no recorded acceptance of any draft"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_with_what_to_try(folder: Path, name: str, replaced: dict[str, str], said: str) -> None:
    for place in ("empty", "newer"):
        (folder / place).mkdir()
    newer = REPORTS[0].read_text().replace('"schema_version":1', '"schema_version":2', 1)
    (folder / "newer" / "run.json").write_text(newer)
    Profile.read(EXAMPLES / "profile.json").model_copy(update={"acceptance": ()}).write(folder / "bare.json")
    shown = refusal_of(name, folder, replaced=replaced)
    assert said in shown
    assert "BadInputError: " in shown
    assert "\n  why: " in shown
    assert "\n  try: " in shown
    assert "Traceback" not in shown


# --- what is not installed is said ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("what_if", "shown_as = page"),
        ("predicted_vs_measured", "shown_as = components"),
        ("acceptance", "shown_as = growth"),
    ],
)
def test_without_widgets_notebooks_still_draw(folder: Path, name: str, check: str) -> None:
    seen = "said = shown_as._repr_html_()\nassert 'ipywidgets and anywidget missing' in said\nassert '<img' in said"
    run_notebook(name, folder, f"{check}\n{seen}", missing=WIDGETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["what_if", "predicted_vs_measured", "acceptance"])
def test_without_plotly_notebooks_say_what_to_install(folder: Path, name: str) -> None:
    shown = refusal_of(name, folder, missing=("plotly",))
    assert "needs plotly" in shown
    assert "pip install 'draftstream[report]'" in shown
    assert "Traceback" not in shown


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
