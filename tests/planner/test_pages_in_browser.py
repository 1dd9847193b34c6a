"""Pages in a real Chromium: drawn, moved, in the dark, on a phone, by keyboard; nothing goes wrong meanwhile, or out.

Screenshots go to the folder that DRAFTSTREAM_SCREENSHOTS names.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import WITHOUT_BROWSER, Browser, Tab, running_browser
from made_up import MB, profile, request
from pages import HOSTILE, three_rounds
from test_compare import performance, plan, report

from planner.changes import Situation
from planner.recommend import recommend
from planner.report_page.html import write_page
from planner.report_page.run import run_document
from planner.report_page.situation import comparison_document, recommendation_document, what_if_document
from planner.what_if import Advice, WhatIf
from planner.what_if_view import look, look_at_it_alone

pytestmark = [pytest.mark.slow, WITHOUT_BROWSER]

SITUATION = Situation(profile=profile(), request=request(36 * MB))  # a quarter of it holds no layer
READY = "document.documentElement.dataset.ready === 'yes'"
PHONES = {"small": 320, "phone": 390}
DRAWN = "[...document.querySelectorAll('.plot')].filter((plot) => plot.querySelector('svg.main-svg')).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page of each kind."""
    place = tmp_path_factory.mktemp("pages")
    found = recommend(SITUATION.profile, SITUATION.request)
    advice = [
        Advice(name="made up", recommendation=found),
        Advice(name="other", recommendation=None, why_not="unknown"),
    ]
    view = look("made up", WhatIf(SITUATION), advice)
    run = report(performance(round_s=0.5, link_s=0.5), plan()).model_copy(update={"text": f"some text\n{HOSTILE}"})
    write_page(place / "what_if.html", what_if_document(view))
    write_page(
        place / "recommend.html", recommendation_document(look_at_it_alone("made up", SITUATION), "runtime generate")
    )
    write_page(place / "compare.html", comparison_document(advice))
    write_page(place / "run.html", run_document(run, HOSTILE, three_rounds()))
    write_page(place / "hostile.html", what_if_document(look(HOSTILE, WhatIf(SITUATION))))
    return place


def open_page(browser: Browser, path: Path, **options: object) -> Tab:
    tab = browser.open(path.as_uri(), **options)  # type: ignore[arg-type]
    tab.wait_for(READY)
    return tab


def assert_calm(tab: Tab, path: Path) -> None:
    """Nothing went wrong, and nothing but the page itself was asked for."""
    assert tab.errors() == []
    assert tab.requests() == [path.as_uri()]
    assert tab.dialogs() == []


def move(tab: Tab, selector: str, value: int) -> None:
    """Drag a slider there, as a person does."""
    tab.evaluate(
        f"(() => {{ const input = document.querySelector({selector!r}); input.value = {value};"
        " input.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


@pytest.mark.parametrize("name", ["what_if", "recommend", "compare", "run", "hostile"])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_asked_for(
    browser: Browser, folder: Path, name: str, is_dark: bool
) -> None:
    path = folder / f"{name}.html"
    tab = open_page(browser, path, is_dark=is_dark)
    num_plots = tab.evaluate("document.querySelectorAll('.plot').length")
    assert num_plots >= 1
    assert tab.evaluate(DRAWN) == num_plots
    tab.screenshot(f"{name}-{'dark' if is_dark else 'light'}")
    assert_calm(tab, path)
    tab.close()


@pytest.mark.parametrize("name", ["what_if", "recommend", "compare", "run", "hostile"])
@pytest.mark.parametrize("width", PHONES.values(), ids=PHONES.keys())
def test_nothing_is_wider_than_a_phone(browser: Browser, folder: Path, name: str, width: int) -> None:
    path = folder / f"{name}.html"
    tab = open_page(browser, path, width=width, height=800, is_phone=True)
    tab.evaluate("document.querySelectorAll('details').forEach((entry) => { entry.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("innerWidth") == width
    tab.screenshot(f"{name}-{width}")
    assert_calm(tab, path)
    tab.close()


def test_sliders_move_the_answer_the_figures_and_the_tables(browser: Browser, folder: Path) -> None:
    path = folder / "what_if.html"
    tab = open_page(browser, path)
    state = (
        "JSON.stringify([document.querySelector('.headline').textContent,"
        " document.querySelector('[data-table=lengths]').textContent,"
        " ...[...document.querySelectorAll('.plot')].map((plot) => JSON.stringify(plot.data))])"
    )
    seen = [tab.evaluate(state)]
    for selector, value in (("#axis-0", 4), ("#axis-1", 5), ("#axis-0", 0)):
        move(tab, selector, value)
        seen.append(tab.evaluate(state))
    assert len(set(seen)) == len(seen)
    outputs = "[...document.querySelectorAll('output')].map((output) => output.textContent)"
    assert tab.evaluate(outputs)[:2] == ["0.25 GB/s", "68.66 MiB"]
    tab.screenshot("what_if-moved", is_whole=False)
    tab.evaluate("document.querySelector('.reset').click()")
    assert tab.evaluate(state) == seen[0]
    assert_calm(tab, path)
    tab.close()


def test_place_where_nothing_runs_says_why_and_shows_no_figure(browser: Browser, folder: Path) -> None:
    path = folder / "what_if.html"
    tab = open_page(browser, path)
    move(tab, "#axis-1", 0)
    assert "Nothing runs here" in tab.evaluate("document.querySelector('.headline').textContent")
    hidden = "[...document.querySelectorAll('figure.unseen')].map((figure) => figure.dataset.figure)"
    assert {"lengths", "round", "memory", "timeline"} <= set(tab.evaluate(hidden))
    tab.screenshot("what_if-empty", is_whole=False)
    assert_calm(tab, path)
    tab.close()


def test_draft_length_moves_a_mark_and_says_its_numbers(browser: Browser, folder: Path) -> None:
    path = folder / "what_if.html"
    tab = open_page(browser, path)
    mark = "document.querySelector('[data-figure=lengths] .plot').layout.shapes.at(-1).x0"
    move(tab, "#lengths", 0)
    assert tab.evaluate(mark) == 1
    said = tab.evaluate("document.querySelector('#length-said').textContent")
    assert said.startswith("chain of 1: ")
    move(tab, "#lengths", 7)
    assert tab.evaluate(mark) == 8
    assert tab.evaluate("document.querySelector('#length-said').textContent").startswith("chain of 8: ")
    assert_calm(tab, path)
    tab.close()


def test_sliders_obey_the_keyboard(browser: Browser, folder: Path) -> None:
    tab = open_page(browser, folder / "what_if.html")
    tab.evaluate("document.querySelector('#axis-0').focus()")
    before = tab.evaluate("document.querySelector('#axis-0').value")
    tab.key("ArrowRight")
    assert int(tab.evaluate("document.querySelector('#axis-0').value")) == int(before) + 1
    assert tab.evaluate("document.querySelector('#axis-0').getAttribute('aria-valuetext')") == "2.00 GB/s"
    tab.close()


def test_figures_take_the_ink_of_the_readers_theme(browser: Browser, folder: Path) -> None:
    tab = open_page(browser, folder / "what_if.html")
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = tab.evaluate(ink), tab.evaluate(paper)
    tab.darken(True)
    tab.wait_for(f"{ink} !== {light[0]!r}")
    dark = tab.evaluate(ink), tab.evaluate(paper)
    assert light[1] != dark[1]
    tab.close()


TIP = """(() => {
  const tips = [...document.querySelectorAll('.tip')].filter((tip) => getComputedStyle(tip).display !== 'none');
  return tips.map((tip) => { const box = tip.getBoundingClientRect(); return [tip.textContent, box.left, box.top,
    box.right, box.bottom]; });
})()"""


def place_of_term(tab: Tab) -> tuple[float, float]:
    """The middle of a word that explains itself, in sight."""
    x, y = tab.evaluate(
        "(() => { const term = document.querySelector('main section h2 .term'); term.scrollIntoView({block: 'center'});"
        " const box = term.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; })()"
    )
    return x, y


@pytest.mark.parametrize("is_phone", [False, True], ids=["mouse", "finger"])
def test_word_explains_itself_within_sight(browser: Browser, folder: Path, is_phone: bool) -> None:
    width, height = (390, 800) if is_phone else (1280, 900)
    tab = open_page(browser, folder / "what_if.html", width=width, height=height, is_phone=is_phone)
    assert tab.evaluate(TIP) == []
    x, y = place_of_term(tab)
    tab.pointer(x, y, is_touch=is_phone)
    tab.wait_for(f"{TIP}.length === 1")
    ((text, left, top, right, bottom),) = tab.evaluate(TIP)
    assert text.startswith("One guess and one check")
    assert left >= 0
    assert top >= 0
    assert right <= width
    assert bottom <= height
    tab.screenshot(f"tip-{'finger' if is_phone else 'mouse'}", is_whole=False)
    tab.close()


def test_word_explains_itself_to_the_keyboard(browser: Browser, folder: Path) -> None:
    tab = open_page(browser, folder / "what_if.html")
    tab.key("Tab")
    tab.wait_for(f"{TIP}.length === 1")
    tab.key("Escape")
    tab.wait_for(f"{TIP}.length === 0")
    tab.close()


def test_browser_without_scripts_still_has_every_number(browser: Browser, folder: Path) -> None:
    tab = browser.open("about:blank")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.navigate", url=(folder / "what_if.html").as_uri())
    tab.wait_for("document.title.startsWith('What if')")
    text = tab.evaluate("document.body.innerText")
    assert "need JavaScript" in text
    assert tab.evaluate("document.querySelectorAll('tbody tr').length") > 30
    tab.close()


def test_what_goes_wrong_in_a_page_is_seen(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<img src='http://evil.example/x'><script>console.error('said'); alert('told'); missing();</script>"
    )
    tab = browser.open(path.as_uri())
    assert tab.dialogs() == ["told"]
    said = "\n".join(tab.errors())
    assert "said" in said
    assert "missing is not defined" in said
    assert "http://evil.example/x" in tab.requests()
    tab.close()
