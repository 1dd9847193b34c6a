"""Plans, profiles, reports and recommendations as pages for people."""

from rich.console import Console

from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.contracts.recognise import Shown
from planner.contracts.recommendation import Recommendation
from planner.contracts.report import Report
from planner.page import Page
from planner.render import headline, sections
from planner.show_plan import show_plan
from planner.show_profile import show_profile
from planner.show_report import show_report


def show(console: Console, record: Shown) -> None:
    """Print the record as wide as the console is."""
    page = Page(console)
    match record:
        case Plan():
            show_plan(page, record)
        case Profile():
            show_profile(page, record)
        case Report():
            show_report(page, record)
        case Recommendation():
            _show_recommendation(page, record)


def _show_recommendation(page: Page, record: Recommendation) -> None:
    """The answer and why, as `planner recommend --explain` says them, then the plan."""
    page.title(headline(record))
    for section in sections(record, explain=True):
        page.heading(section.title + (f": {section.subject}" if section.subject else ""))
        page.lines(section.lines)
    if record.refused:
        page.heading("refused drafts")
        page.lines(f"{refusal.draft}: {refusal.why}" for refusal in record.refused)
    page.heading("known from")
    page.lines([f"{record.basis}; {record.num_scored} plans scored", *record.sources])
    if record.warnings:
        page.heading("notes")
        page.lines(record.warnings, style="yellow")
    page.heading("")
    show_plan(page, record.plan)
