"""The what-if page: what its menus offer and mean, and what it does when a hand moves them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest
from made_up import MB, profile, request

from planner.changes import Change, Situation
from planner.contracts.errors import BadInputError, UsageError
from planner.contracts.plan import EmulatedLink
from planner.contracts.quantities import format_bytes
from planner.figures.still import StillPage
from planner.figures.widgets import WhatIfPage
from planner.notebook import FromCatalogue, FromProfile, Session, answer, grounds, menus_for, open_page, sizes_of

EXAMPLES = Path(__file__).parents[2] / "notebooks" / "examples"
EXAMPLE = FromProfile(
    path=str(EXAMPLES / "profile.json"),
    reports=(str(EXAMPLES / "reports"),),
    link="emulated:300MB/s",
    device_memory="13MiB",
)

# --- choices in, changes out ---


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(FromCatalogue(machine="rtx-3060-12gb", target="qwen2.5-7b", draft="qwen2.5-0.5b"))


def test_menus_hold_what_is_now_among_round_values(session: Session) -> None:
    menus = menus_for(session.what_if.situation)
    for menu in (menus.device_bytes, menus.link_bytes_per_s, menus.context_tokens):
        texts = [text for text, _ in menu]
        assert len(set(texts)) == len(texts)
        assert [text for text, meant in menu if meant is None] == [text for text in texts if text.endswith(" now")]
    assert dict(menus.device_bytes)["8.00 GiB"] == 8 * 2**30
    assert dict(menus.link_bytes_per_s)["16.00 GB/s"] == 16e9
    assert [text for text, _ in menus.domain] == ["chat"]  # published acceptance is of one kind of text


def test_menus_of_a_profile_offer_its_texts() -> None:
    menus = menus_for(Situation(profile=profile(), request=request(80 * MB)))
    assert [text for text, _ in menus.domain] == ["all texts", "code"]


def test_sizes_are_those_that_the_planner_considers_of_a_kind() -> None:
    assert [text for text, _ in sizes_of(None)] == ["the best"]
    assert dict(sizes_of("chain"))["4"] == 4
    assert set(dict(sizes_of("ngram"))) < set(dict(sizes_of("chain"))) | set(dict(sizes_of("tree")))


def test_what_is_asked_twice_is_computed_once(session: Session) -> None:
    assert session.curve(Change()) is session.curve(Change(kind="chain", num_nodes=4))
    assert session.map(Change()) is session.map(Change(device_bytes=2**33, link_bytes_per_s=1e9))


def test_a_codec_makes_no_link_faster(session: Session) -> None:
    assert session.here(Change(codec="nf4")) == session.here(Change())
    assert session.here(Change(device_bytes=2**33, link_bytes_per_s=1e9)) == (2**33, 1e9)


def test_what_is_typed_is_a_profile_reports_a_link_and_memory() -> None:
    typed = FromProfile.typed(" profile.json ", "one.json, folder,", " disk:cached ", " 2GiB ")
    named = ("one.json", "folder")
    assert typed == FromProfile(path="profile.json", reports=named, link="disk:cached", device_memory="2GiB")
    assert FromProfile.typed("profile.json", "", " ", "") == FromProfile(path="profile.json")


# --- own profile, with reports of its runs ---


def test_a_folder_stands_for_the_reports_that_fit() -> None:
    case = Session(EXAMPLE).case(Change())
    error = case.situation.request.error
    assert error is not None
    assert error.num_runs == 7  # of nine two ran from disk
    assert grounds(case, Change()).endswith(", 1 thread; corrected by 7 runs")
    from_disk = replace(EXAMPLE, link="disk:cached").situation().request.error
    assert from_disk is not None
    assert from_disk.num_runs == 2


def test_reports_named_one_by_one_must_fit() -> None:
    fits, other = (str(EXAMPLES / "reports" / f"{name}.json") for name in ("code-chain", "prose-disk-chain"))
    situation = replace(EXAMPLE, reports=(fits,)).situation()
    assert situation.request.error is not None
    assert situation.request.error.num_runs == 1
    assert situation.request.budget.device_bytes == 13 * 2**20
    with pytest.raises(BadInputError, match=r"prose-disk-chain\.json cannot calibrate this plan\n.*over the link disk"):
        replace(EXAMPLE, reports=(fits, other)).situation()


def test_a_folder_in_which_no_report_fits_is_refused_with_the_reasons(tmp_path: Path) -> None:
    subject = replace(EXAMPLE, reports=(str(tmp_path),))
    with pytest.raises(BadInputError, match=r"no report in .*\n.*there is no JSON file in it"):
        subject.situation()
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"a\.json: .*; b\.json: .*; c\.json: .*; and 1 more"):
        subject.situation()


def test_a_link_is_asked_for_as_on_the_command_line() -> None:
    assert replace(EXAMPLE, reports=()).situation().request.wishes.link == EmulatedLink(bytes_per_s=300e6)
    with pytest.raises(UsageError, match="there is no link 'carrier pigeon'"):
        replace(EXAMPLE, link="carrier pigeon").situation()


@pytest.mark.parametrize(
    "changes", [{"path": "~no-such-user/x.json"}, {"reports": ("~no-such-user/reports",)}], ids=str
)
def test_a_home_that_nobody_has_is_bad_input(changes: dict[str, object]) -> None:
    with pytest.raises(BadInputError, match="cannot read ~no-such-user/"):
        replace(EXAMPLE, **changes).situation()  # type: ignore[arg-type]


def test_a_name_that_no_file_can_have_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="cannot read"):
        replace(EXAMPLE, reports=("x" * 300,)).situation()


def test_a_codec_says_what_travels(session: Session) -> None:
    coded = session.case(Change(codec="nf4", device_bytes=8 * 2**30))
    wire_bytes = coded.plan.streamed_bytes * 9 / 32
    assert f"{format_bytes(wire_bytes)} travel in every pass as nf4" in answer(coded, "nf4")


def test_a_machine_without_its_numbers_is_said_and_does_not_stop_the_others(session: Session) -> None:
    advice = session.machines(["rtx-4090", "no such machine"])
    assert [entry.name for entry in advice] == ["rtx-4090", "no such machine"]
    assert advice[1].recommendation is None
    assert "no such machine" in (advice[1].why_not or "")


# --- the page, in this process ---


@pytest.fixture
def page() -> WhatIfPage:
    return WhatIfPage(FromCatalogue(machine="rtx-3060-12gb", target="qwen2.5-7b", draft="qwen2.5-0.5b"))


def layout(page: WhatIfPage) -> go.Layout:
    """That of the curve's figure."""
    assert page.figures["lengths"].widget is not None
    return page.figures["lengths"].widget.layout


def test_what_does_not_fit_is_said_and_no_figure_is_left_standing(page: WhatIfPage) -> None:
    page.controls.context_tokens.value = page.controls.context_tokens.options[-1]
    page.controls.device_bytes.value = page.controls.device_bytes.options[0]
    assert "does not fit" in page.message.value
    assert page.always.layout.visibility == "hidden"
    page.controls.device_bytes.value = "8.00 GiB"
    assert "tok/s" in page.message.value
    assert page.always.layout.visibility == "visible"


def test_own_profile_is_opened_with_its_drafts_and_texts(page: WhatIfPage, tmp_path: Path) -> None:
    profile().write(tmp_path / "profile.json")
    page.subject.path.value = str(tmp_path / "profile.json")
    page.subject.load.click()
    assert "by draft" in page.message.value
    assert page.controls.domain.options == ("all texts", "code")
    assert "draft: draft" in layout(page).title.subtitle.text


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "profile.json"), ("{}", "Field required"), ('{"schema_version": 99, "kind": "measured"}', "99")],
)
def test_a_file_that_is_none_of_ours_is_refused_with_the_reason(
    page: WhatIfPage, text: str | None, said: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "profile.json").write_text(text)
    page.open(FromProfile(path=str(tmp_path / "profile.json")))
    assert said in page.message.value
    assert "try:" in page.message.value
    assert page.always.layout.visibility == "hidden"


def test_own_profile_is_opened_with_its_reports_and_link(page: WhatIfPage) -> None:
    page.subject.path.value, page.subject.reports.value = EXAMPLE.path, EXAMPLE.reports[0]
    page.subject.link.value, page.subject.memory.value = "emulated:300MB/s", "13MiB"
    page.subject.load.click()
    assert "corrected by 7 runs" in page.message.value
    assert "13.00 MiB now" in page.controls.device_bytes.options
    page.subject.path.value = "~no-such-user/profile.json"
    page.subject.load.click()
    assert "cannot read ~no-such-user/profile.json" in page.message.value


def test_a_section_that_cannot_be_drawn_says_so_and_hides_nothing_else(page: WhatIfPage, tmp_path: Path) -> None:
    profile().write(tmp_path / "profile.json")
    page.open(
        FromProfile(path=str(tmp_path / "profile.json"), link="disk:direct")
    )  # all fits, so that it may be unknown
    page.sections.selected_index = 0
    assert "does not know the link disk:direct" in page.figures["map"].message.value
    assert page.always.layout.visibility == page.sections.layout.visibility == "visible"
    assert "tok/s" in page.message.value
    page.open(FromProfile(path=str(tmp_path / "profile.json"), link="disk:cached"))
    assert page.figures["map"].message.value == ""
    assert page.figures["map"].widget in page.figures["map"].place.children


def test_page_says_what_its_numbers_rest_on(page: WhatIfPage) -> None:
    assert "estimated for rtx-3060-12gb from its catalogue entry" in page.message.value
    assert "decoding is not priced" not in page.message.value
    page.controls.codec.value = next(text for text in page.controls.codec.options if "4 bits" in text)
    assert "decoding is not priced, and the runtime reads no such weights yet" in page.message.value


def test_another_target_offers_its_own_drafts(page: WhatIfPage) -> None:
    page.subject.target.value = "llama-3.1-8b"
    assert page.subject.draft.options == ("none", "llama-3.2-1b", "llama-3.2-3b")
    assert "llama-3.2-1b" in page.message.value


def test_dark_page_changes_the_ink_in_place(page: WhatIfPage) -> None:
    widget, ink = page.figures["lengths"].widget, layout(page).template.layout.font.color
    page.surroundings.is_dark = True
    assert page.figures["lengths"].widget is widget
    assert layout(page).template.layout.font.color != ink


# --- without widgets ---


def test_without_widgets_the_page_says_what_to_install_and_shows_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "planner.extras.find_spec", lambda name: None if name in ("ipywidgets", "anywidget") else real(name)
    )
    still = open_page(FromCatalogue(machine="rtx-3060-12gb", target="qwen2.5-7b", draft="qwen2.5-0.5b"))
    shown = still.root._repr_html_()
    assert "ipywidgets and anywidget missing" in shown
    assert "pip install 'draftstream[notebook]'" in shown.replace("&#x27;", "'")
    assert isinstance(still, StillPage)
    assert list(still.figures) == ["lengths", "round", "memory", "timeline", "map", "prices", "machines"]
    assert shown.count("<img") == 7


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="the what-if notebook needs plotly"):
        open_page()


def test_no_choice_of_text_waits_for_its_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(EXAMPLE)
    texts = [text for _, text in session.menus.domain if text is not None]
    assert texts

    def waited(*_: object) -> None:
        raise AssertionError("ranked only now")

    monkeypatch.setattr("planner.what_if.rank", waited)
    assert len({session.curve(Change(domain=text)) for text in texts} - {session.curve(Change())}) == len(texts)
