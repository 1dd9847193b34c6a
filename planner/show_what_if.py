"""What-if as a page in the terminal: the answer, and the tables that the figures draw."""

from collections.abc import Iterator

from planner.page import Page
from planner.render import facts, headline
from planner.what_if_tables import (
    TableData,
    length_table,
    machine_table,
    map_table,
    memory_table,
    price_table,
    round_table,
)
from planner.what_if_view import View


def show_what_if(page: Page, view: View) -> None:
    """Print all of the view."""
    found = view.recommendation
    page.title(f"{found.plan.target.name} on {view.name}: {headline(found)}")
    page.facts(facts(found.plan, found.choice))
    for table in tables_of(view):
        page.heading(table.title)
        page.table_in_blocks(table.columns, table.rows)
        page.lines(table.notes)
    page.heading("known from")
    page.lines([found.basis])
    if found.warnings:
        page.heading("notes")
        page.lines(found.warnings, style="yellow")


def tables_of(view: View) -> Iterator[TableData]:
    """The tables in their order; those of which nothing is known are left out."""
    request = view.situation.request
    if view.curve is not None:
        yield length_table(view.curve)
    yield round_table(view.case.parts())
    yield memory_table(view.case.plan)
    if view.strategies is not None:
        yield map_table(view.strategies, request.budget.device_bytes, view.now_bytes_per_s)
    if view.case.prices:
        yield price_table(view.case.prices, view.recommendation.choice.tokens_per_s)
    if view.advice:
        yield machine_table(view.advice)
