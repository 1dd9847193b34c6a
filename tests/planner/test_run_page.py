"""The page of a run: predicted beside measured, both timelines, and what nobody measured."""

import json

from pages import HOSTILE, harmless, packed, plain, three_rounds
from test_compare import PREDICTED, performance, plan, report

from planner.contracts.performance import Performance
from planner.report_page.html import html_of
from planner.report_page.run import run_document


def test_prompt_and_text_of_a_run_are_text() -> None:
    made = report(PREDICTED).model_copy(update={"text": f"one\ttab\n{HOSTILE}\n</pre><b>", "warnings": (HOSTILE,)})
    page = html_of(run_document(made, HOSTILE, None))
    harmless(page)
    assert "one\\ttab\n" in page or "one\ttab\n" in page
    assert plain(page).count("<script>alert(1)</script>") == 3


def test_run_that_measured_nothing_says_so() -> None:
    page = plain(html_of(run_document(report(Performance()), "a prompt", None)))
    for text in ("not compared", "no timeline was recorded", "not measured", "none was written", "a prompt"):
        assert text in page


def test_run_shows_predicted_beside_measured_and_both_timelines() -> None:
    made = report(performance(round_s=0.5, link_s=0.5), plan())
    page = html_of(run_document(made, "a prompt", three_rounds()))
    found = json.loads(packed(page, "data"))
    assert {"components", "timelines", "memory"} <= found["figures"].keys()
    assert "+25.0%" in plain(page)  # 0.5 s a round, 0.4 s predicted
