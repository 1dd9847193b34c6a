"""Figures of acceptance: what they show is what was replayed; axes say their units and start where they should."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from colours import BLIND, alike, is_of_palette
from made_up import DRAFT
from test_acceptance_curves import TWO_PROMPTS, matched, ranked, with_probs
from test_acceptance_curves import with_recordings as profile_of

from planner.acceptance_curves import (
    draft_calibration,
    growth_curves,
    length_curves,
    match_groups,
    rank_curves,
    recorded_drafts,
    survival_curves,
)
from planner.contracts.profile import Profile
from planner.figures.acceptance import (
    calibration_figure,
    growth_figure,
    lengths_figure,
    matches_figure,
    ranks_figure,
    survival_figure,
)
from planner.figures.static import write_static

EXAMPLE = Path(__file__).parents[2] / "notebooks" / "examples" / "profile.json"
PROSE = ranked(0, 0, 0, 0, domain="prose")
MANY = [with_probs(([0] * 7 + [1] * 2 + [9]) * 100), with_probs([0, 1] * 100)]
MATCHES = matched((0, 1, 1, 20, 7), (0, 1, 0, 1, 1), (0.0, 1.0, 0.5, 1.0, 0.75))


def named(figure: go.Figure, name: str) -> Sequence[Any]:
    return [trace for trace in figure.data if trace.name == name]


def line(figure: go.Figure, name: str) -> go.Scatter:
    """The line of that name, not its band."""
    (found,) = [trace for trace in named(figure, name) if trace.mode == "lines+markers"]
    return found


# --- curves over texts ---


def test_survival_is_shown_in_percent_of_the_rounds() -> None:
    figure = survival_figure(survival_curves(TWO_PROMPTS, 2, seed=0), drafter="a <draft>")
    code = line(figure, "code")
    assert list(code.x) == [1, 2]
    assert list(code.y) == pytest.approx([40.0, 20.0])
    assert list(figure.layout.yaxis.range) == [0, 100]
    assert "a &lt;draft&gt;, 2 tokens drafted" in figure.layout.title.subtitle.text
    assert "P10-P90" in figure.layout.title.subtitle.text


def test_each_kind_of_text_differs_in_colour_and_marker_and_all_is_dashed() -> None:
    figure = survival_figure(survival_curves((*TWO_PROMPTS, PROSE), 2, seed=0), drafter="draft")
    lines = [line(figure, name) for name in ("code", "prose", "all texts")]
    assert len({trace.line.color for trace in lines}) == 3
    assert len({trace.marker.symbol for trace in lines}) == 3
    assert [trace.line.dash for trace in lines] == ["solid", "solid", "dash"]


def test_a_band_runs_along_both_ends_of_the_interval() -> None:
    (curve,) = survival_curves(TWO_PROMPTS, 2, seed=0)
    assert curve.lows is not None
    assert curve.highs is not None
    (band,) = [trace for trace in survival_figure([curve], drafter="draft").data if trace.fill == "toself"]
    assert list(band.x) == [1, 2, 2, 1]
    assert list(band.y) == pytest.approx([100 * value for value in (*curve.lows, *reversed(curve.highs))])


def test_one_prompt_has_no_band_and_the_figure_says_so() -> None:
    figure = survival_figure(survival_curves(TWO_PROMPTS[:1], 2, seed=0), drafter="draft")
    assert not any(trace.fill == "toself" for trace in figure.data)
    assert "no band where one prompt is all there is" in figure.layout.title.subtitle.text


def test_tokens_per_round_start_at_the_one_that_the_target_adds() -> None:
    figure = lengths_figure(length_curves(TWO_PROMPTS, (1, 2), seed=0), drafter="draft")
    assert list(line(figure, "code").y) == pytest.approx([length_curves(TWO_PROMPTS, (1,), seed=0)[0].values[0], 1.6])
    low, high = figure.layout.yaxis.range
    assert low == 1
    assert high > max(length_curves(TWO_PROMPTS, (2,), seed=0)[0].highs or ())


def test_a_draft_that_is_never_right_is_drawn_all_the_same() -> None:
    figure = lengths_figure(length_curves([ranked(1, 1, 1)] * 2, (1, 2), seed=0), drafter="draft")
    assert list(figure.layout.yaxis.range) == [1, 2]


def test_ranks_are_shown_in_percent_of_the_tokens() -> None:
    figure = ranks_figure(rank_curves(TWO_PROMPTS, 3, seed=0), drafter="draft")
    assert list(line(figure, "code").y) == pytest.approx([70.0, 100.0, 100.0])
    assert list(figure.layout.yaxis.range) == [0, 100]


# --- matches ---


def test_matches_stand_in_groups_of_their_length_beside_what_was_assumed() -> None:
    figure = matches_figure(match_groups(profile_of([MATCHES])))
    assert list(figure.layout.xaxis.ticktext) == ["1", "7-8", "16+"]
    (always,) = [trace for trace in named(figure, "always the same before") if trace.mode == "markers"]
    assert list(always.y) == [100.0, 100.0]
    assert [round(x) for x in always.x] == [0, 2]
    (assumed,) = named(figure, "assumed beforehand, if always the same")
    assert list(assumed.y) == pytest.approx([25.0, 95.0])
    symbols = {trace.marker.symbol for trace in figure.data if trace.mode == "markers"}
    assert len(symbols) == 3


# --- probabilities ---


def test_probabilities_stand_at_their_log_odds_and_say_themselves() -> None:
    found = draft_calibration(profile_of(MANY[:1]), DRAFT.fingerprint)
    figure = calibration_figure(found, drafter="draft")
    (recorded,) = named(figure, "recorded")
    assert list(recorded.x) == pytest.approx([math.log(0.3 / 0.7), 0.0])
    assert list(recorded.y) == pytest.approx([math.log(0.2 / 0.8), math.log(0.7 / 0.3)])
    (edge,) = named(figure, "recorded, none or all")
    assert list(edge.x) == pytest.approx([math.log(0.1 / 0.9)])  # the third choice was never taken
    assert edge.marker.symbol != recorded.marker.symbol
    assert recorded.customdata[0] == "draft: 30 %<br>taken: 20 % of 1000 candidates"
    assert "50" in figure.layout.xaxis.ticktext
    assert list(figure.layout.xaxis.tickvals) == list(figure.layout.yaxis.tickvals)


def test_few_candidates_show_no_curve() -> None:
    figure = calibration_figure(draft_calibration(profile_of([with_probs([0] * 20)]), DRAFT.fingerprint), drafter="d")
    assert not named(figure, "what plans take of it")
    assert named(
        calibration_figure(draft_calibration(profile_of(MANY), DRAFT.fingerprint), drafter="d"), "what plans take of it"
    )


# --- trees ---


def test_growth_is_drawn_over_nodes_with_one_look_for_each_kind_and_depth() -> None:
    curves = growth_curves(profile_of(MANY), DRAFT.fingerprint)
    figure = growth_figure(curves, drafter="draft")
    tree = line(figure, "tree, 8 deep")
    assert list(tree.x) == list(curves[2].num_nodes)
    assert list(tree.y) == list(curves[2].tokens_per_round)
    looks = [(trace.line.color, trace.line.dash, trace.marker.symbol) for trace in figure.data]
    assert len(set(looks)) == len(curves)
    assert figure.layout.yaxis.range[0] == 1
    assert figure.layout.xaxis.type == "log"


# --- what holds of every figure ---


def every_figure() -> dict[str, go.Figure]:
    made = profile_of(MANY)
    return {
        "survival": survival_figure(survival_curves(TWO_PROMPTS, 2, seed=0), drafter="draft"),
        "lengths": lengths_figure(length_curves(TWO_PROMPTS, (1, 2), seed=0), drafter="draft"),
        "ranks": ranks_figure(rank_curves(TWO_PROMPTS, 3, seed=0), drafter="draft"),
        "matches": matches_figure(match_groups(profile_of([MATCHES]))),
        "calibration": calibration_figure(draft_calibration(made, DRAFT.fingerprint), drafter="draft"),
        "growth": growth_figure(growth_curves(made, DRAFT.fingerprint), drafter="draft"),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_axes_say_what_they_count(name: str) -> None:
    layout = every_figure()[name].layout
    units = ("(%)", "(tokens)", "(tokens in a round)", "(nodes)", "tokens per round", "accepted tokens, at least")
    titles = [layout.xaxis.title.text, layout.yaxis.title.text]
    assert all(title.endswith((*units, "choices of the draft")) for title in titles)


@pytest.mark.parametrize("name", list(every_figure()))
def test_figures_are_drawn_without_a_browser(name: str, tmp_path: Path) -> None:
    write_static(every_figure()[name], tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")


# --- colours ---


@pytest.fixture(scope="module")
def figures() -> dict[str, go.Figure]:
    texts = (*TWO_PROMPTS, PROSE, ranked(0, 1, 0, domain="chat"), ranked(1, 0, 0, domain="math"))
    made = Profile.read(EXAMPLE)
    ((name, draft),) = recorded_drafts(made).items()
    return {
        "survival": survival_figure(survival_curves(texts, 2, seed=0), drafter="draft"),
        "lengths": lengths_figure(length_curves(texts, (1, 2), seed=0), drafter="draft"),
        "ranks": ranks_figure(rank_curves(texts, 4, seed=0), drafter="draft"),
        "matches": matches_figure(match_groups(made)),
        "calibration": calibration_figure(draft_calibration(made, draft), drafter=name),
        "growth": growth_figure(growth_curves(made, draft, "prose"), drafter=name),
    }


NAMES = ("survival", "lengths", "ranks", "matches", "calibration", "growth")


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("name", NAMES)
def test_colour_blind_people_tell_traces_apart(figures: dict[str, go.Figure], name: str, blindness: str) -> None:
    assert alike(figures[name], blindness) == []


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_those_of_the_palette(figures: dict[str, go.Figure], name: str) -> None:
    used = {
        mark.color for trace in figures[name].data for mark in (trace.marker, trace.line) if isinstance(mark.color, str)
    }
    assert used
    assert [colour for colour in used if not is_of_palette(colour)] == []
