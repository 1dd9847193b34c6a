"""Pages for a browser: whole by themselves, with what-if's numbers; words explain themselves, strangers are escaped."""

import base64
import hashlib
import itertools
import json
import re
from typing import Any

import pytest
from made_up import DRAFT, MB, profile, request
from pages import HOSTILE, harmless, packed, plain, read, rows

from planner.changes import Change, Situation
from planner.contracts.errors import NoFeasiblePlanError
from planner.contracts.plan import DiskLink
from planner.contracts.quantities import format_tokens_per_s
from planner.grid import LINK_FACTORS, MEMORY_FACTORS, axes_of, change_at, map_around, points
from planner.recommend import recommend
from planner.render import headline, speed
from planner.report_page.document import Document, Section
from planner.report_page.html import html_of
from planner.report_page.situation import comparison_document, recommendation_document, what_if_document
from planner.report_page.terms import TERMS, Explainer
from planner.what_if import Advice, WhatIf
from planner.what_if_tables import length_table, machine_table, map_table, round_table
from planner.what_if_view import View, look, look_at_it_alone

MOST_BYTES = 6 * 10**6

SITUATION = Situation(profile=profile(), request=request(36 * MB))  # a quarter of it holds no layer


@pytest.fixture(scope="module")
def view() -> View:
    return look("made up", WhatIf(SITUATION))


@pytest.fixture(scope="module")
def page(view: View) -> str:
    return html_of(what_if_document(view))


@pytest.fixture(scope="module")
def data(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(packed(page, "data"))
    return found


# --- whole by itself ---


def test_page_is_small(page: str) -> None:
    assert len(page.encode()) < MOST_BYTES


def test_page_asks_for_nothing_outside(page: str) -> None:
    fetching = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}
    elements = read(page).elements
    assert [(tag, name) for tag, attributes in elements for name in fetching & attributes.keys()] == []
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in elements}
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert not re.search(r"url\(|@import|https?:|//", style)


def test_browser_is_told_to_fetch_nothing_and_to_run_only_our_scripts(page: str) -> None:
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in read(page).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert not {"connect-src", "font-src", "frame-src"} & rules.keys()
    assert "http" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    ran = [script, packed(page, "plotly")]
    codes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in ran]
    assert rules["script-src"].split() == [f"'sha256-{code}'" for code in codes]


def test_page_is_for_phones_and_for_the_dark(page: str, data: dict[str, Any]) -> None:
    metas = [attributes for tag, attributes in read(page).elements if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert "@media (prefers-color-scheme: dark)" in page
    light, dark = (data["templates"][theme]["layout"] for theme in ("light", "dark"))
    assert light.keys() == dark.keys()
    assert light["font"]["color"] != dark["font"]["color"]


def test_same_situation_gives_the_same_page(view: View, page: str) -> None:
    assert html_of(what_if_document(look("made up", WhatIf(SITUATION)))) == page


# --- its numbers ---


def test_every_stand_of_the_sliders_is_a_case_of_what_if(data: dict[str, Any]) -> None:
    what_if, axes = WhatIf(SITUATION), axes_of(SITUATION)
    places = list(itertools.product(*(range(len(axis.values)) for axis in axes)))
    assert len(data["stands"]) == len(places) == len(MEMORY_FACTORS) * len(LINK_FACTORS)
    num_empty = 0
    for place, stand in zip(places, data["stands"], strict=True):
        if not stand["facts"]:
            assert set(stand["figures"]) == {"map"}
            with pytest.raises(NoFeasiblePlanError) as refused:
                what_if.case(change_at(axes, place))
            assert refused.value.what in plain(stand["headline"])
            num_empty += 1
            continue
        case = what_if.case(change_at(axes, place))
        curve = case.curve
        assert curve is not None
        assert speed(case.plan) in plain(stand["headline"])
        (median,) = (trace for trace in stand["figures"]["lengths"]["data"] if trace["name"] == "median (P50)")
        assert median["x"] == [point.draft_len for point in curve.points]
        assert median["y"] == [point.tokens_per_s.p50 for point in curve.points]
        assert rows(stand["tables"]["lengths"]) == [list(row) for row in length_table(curve).rows]
        assert rows(stand["tables"]["round"]) == [list(row) for row in round_table(case.parts()).rows]
        for point in curve.points:
            assert f"{point.tokens_per_s.p50:.2f} tok/s" in stand["lengths"][str(point.draft_len)]
    assert num_empty == len(LINK_FACTORS)


def test_page_begins_with_what_recommend_says(page: str, data: dict[str, Any]) -> None:
    expected = recommend(SITUATION.profile, SITUATION.request)
    axes = axes_of(SITUATION)
    start = 0
    for axis in axes:
        start = start * len(axis.values) + axis.start_idx
    assert headline(expected) in plain(data["stands"][start]["headline"])
    assert headline(expected) in plain(page)
    assert all(reason in plain(page) for reason in expected.reasons)


def test_grid_holds_what_is_now_unchanged() -> None:
    axes = axes_of(SITUATION, contexts_tokens=(128, 1024, 512))
    assert [axis.field for axis in axes] == ["context_tokens", "link_bytes_per_s", "device_bytes"]
    assert axes[0].values == (128, 512, 1024)
    assert change_at(axes, [axis.start_idx for axis in axes]) == Change()
    assert all(tuple(sorted(axis.values)) == axis.values for axis in axes)


def test_map_follows_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.grid.MEMORY_FACTORS", (1, 2))
    monkeypatch.setattr("planner.grid.LINK_FACTORS", (1, 2))
    view = look("made up", WhatIf(SITUATION))
    found: dict[str, Any] = json.loads(packed(html_of(what_if_document(view, (128, 200, 10**6))), "data"))
    what_if, num_each = WhatIf(SITUATION), 4
    for place, context_tokens in ((0, None), (1, 200)):
        expected = map_around(what_if, Change(context_tokens=context_tokens))
        table = map_table(expected, 36 * MB, 1e9)
        for stand in found["stands"][place * num_each : (place + 1) * num_each]:
            assert rows(stand["tables"]["map"]) == [list(row) for row in table.rows]
            assert [[cell[3] for cell in row] for row in stand["figures"]["map"]["data"][0]["customdata"]] == [
                ["nothing fits" if cell is None else format_tokens_per_s(cell.tokens_per_s) for cell in row]
                for row in expected.cells
            ]
    assert not any(stand["figures"] or stand["tables"] for stand in found["stands"][2 * num_each :])


def test_what_no_slider_moves_is_said_to_stay(view: View, page: str) -> None:
    titles = [section.title for section in what_if_document(view).sections]
    assert (
        titles.index("Other memory, another link") < titles.index("As it is now") < titles.index("What more would give")
    )
    assert "about made up as it is now, wherever the sliders stand" in plain(page)
    alone = recommendation_document(look_at_it_alone("made up", SITUATION), "")
    assert "As it is now" not in [section.title for section in alone.sections]


def test_context_that_the_model_was_not_made_for_is_said_to_run_nowhere() -> None:
    axes = axes_of(SITUATION, contexts_tokens=(10**6,))[:1]
    here, beyond = points(WhatIf(SITUATION), axes)
    assert here.case is not None
    assert beyond.case is None
    assert "4096" in (beyond.why_not or "")


def test_link_that_nobody_measured_has_no_slider_and_no_map() -> None:
    stays = request(400 * MB, link=DiskLink(mode="direct"))
    found = look("made up", WhatIf(Situation(profile=profile(), request=stays)))
    assert found.strategies is None
    assert [axis.field for axis in axes_of(found.situation)] == ["device_bytes"]
    document = what_if_document(found)
    assert "map" not in document.figures
    assert [slider.label for slider in document.sliders] == ["device memory"]


def test_map_says_where_nothing_fits_and_where_one_is(view: View) -> None:
    assert view.strategies is not None
    table = map_table(view.strategies, 36 * MB, 1e9)
    assert table.columns[5] == "[34.33 MiB]"
    assert [row[0] for row in table.rows].count("[1.00 GB/s]") == 1
    assert {row[1] for row in table.rows} == {"none fits"}


# --- its words ---


def test_words_that_not_everyone_knows_explain_themselves(page: str) -> None:
    marked = re.findall(r'<dfn class="term" tabindex="0">([^<]+)<span class="tip" role="tooltip">([^<]+)</span>', page)
    assert len(marked) == page.count('class="term"') > 40
    assert {"draft", "round", "link bandwidth", "P10-P90", "tok/s", "resident"} <= {word for word, _ in marked}
    assert all(len(meaning) > 30 for _, meaning in marked)
    assert all(f"<dt>{term}</dt>" in page for term in ("draft", "round", "tok/s"))


def test_sliders_explain_their_names(page: str) -> None:
    controls = page.partition('aria-label="sliders"')[2].partition("</section>")[0]
    marked = re.findall(r'<span><dfn class="term" tabindex="0">([^<]+)<', controls)
    assert marked == ["link bandwidth", "device memory", "draft length"]


@pytest.mark.parametrize("word", ["speculate", "pass", "compute", "host", "disk", "GiB", "GB/s", "layers", "weights"])
def test_words_of_the_trade_are_known(word: str) -> None:
    assert Explainer().explained(f"5 {word}, and so on").count("term") == 1


def test_a_word_is_marked_once_a_section_and_only_as_a_whole() -> None:
    explainer = Explainer()
    assert explainer.explained("drafty overdraft, redraft").count("term") == 0
    assert explainer.explained("Drafted tokens of a draft in rounds").count("term") == 2
    explainer.begin_section()
    assert explainer.explained("draft").count("term") == 1
    assert explainer.used == {"draft", "round"}


def test_meanings_use_no_word_of_the_trade_that_they_leave_open() -> None:
    assert all(meaning.endswith(".") and len(meaning) < 260 for meaning in TERMS.values())
    assert not any(word in meaning for meaning in TERMS.values() for word in ("PCIe", "batch", "GPU", "inference"))


# --- strangers ---


def test_names_of_machines_and_models_are_text() -> None:
    draft = DRAFT.model_copy(update={"name": HOSTILE})
    target = SITUATION.profile.target.model_copy(update={"name": HOSTILE})
    made = profile(drafts=(draft,), target=target)
    page = html_of(what_if_document(look(HOSTILE, WhatIf(Situation(profile=made, request=SITUATION.request)))))
    harmless(page)
    assert "<script>alert" not in packed(page, "data")
    assert "<img" not in packed(page, "data")


# --- recommendation, machines, run ---


def test_page_of_a_recommendation_ends_with_the_line_to_paste() -> None:
    made = look_at_it_alone("made up", SITUATION)
    page = html_of(recommendation_document(made, "runtime generate --plan 'a <b>.json'"))
    assert "runtime generate --plan 'a <b>.json'" in plain(page)
    found = json.loads(packed(page, "data"))
    assert set(found["figures"]) == {"lengths", "round", "memory", "timeline", "prices"}
    assert found["stands"] == []
    assert "<input" not in page


def test_machine_of_which_too_little_is_known_has_a_reason_and_no_speed(view: View) -> None:
    advice = [
        Advice(name="fast", recommendation=view.recommendation),
        Advice(name="other", recommendation=None, why_not="its memory bandwidth is unknown"),
    ]
    table = machine_table(advice)
    assert [row[0] for row in table.rows] == ["fast"]
    assert table.notes == ("other: its memory bandwidth is unknown",)
    text = plain(html_of(comparison_document(advice)))
    assert "other: its memory bandwidth is unknown" in text
    assert "0.00 (" not in text


def test_document_without_figures_is_a_page() -> None:
    document = Document(title="t", subtitle="", headline="h", facts=(), sections=(Section(title="empty"),), figures={})
    assert "<h2>empty</h2>" in html_of(document)
